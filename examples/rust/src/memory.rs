// SPDX-License-Identifier: MIT
//! Access to guest memory: vm-memory's traits over a view.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use vm_memory::bitmap::BS;
#[cfg(vm_memory_before_0_18)]
use vm_memory::GuestMemory as GuestMemoryBackend;
#[cfg(not(vm_memory_before_0_18))]
use vm_memory::GuestMemoryBackend;
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use crate::vm::Handle;
use crate::{sys, Error};

type Result<T> = std::result::Result<T, GuestMemoryError>;

/// A view, and the regions there were when it was last used.
#[derive(Debug)]
pub(crate) struct Reader {
    view: *mut sys::gmem_view,
    regions: Vec<Region>,
    /// [`Handle::changes`] when the regions were listed; 0: never.
    seen: u64,
}

// SAFETY: a view is for one thread at a time, whichever that is, and its regions go with it.
unsafe impl Send for Reader {}

impl Reader {
    fn new(vm: &Handle) -> std::result::Result<Reader, Error> {
        let mut view = ptr::null_mut();
        // SAFETY: the handle is valid, and frees its readers before it ends.
        Error::check(unsafe { sys::gmem_view_new(vm.as_ptr(), &mut view) })?;
        Ok(Reader { view, regions: Vec::new(), seen: 0 })
    }

    fn list_regions(&mut self, vm: &Handle) -> std::result::Result<(), Error> {
        let seen = vm.changes();
        if self.seen == seen {
            return Ok(());
        }
        let view = self.view;
        let regions = vm.regions()?.into_iter();
        let memory = regions.filter(|info| info.flags & u64::from(sys::GMEM_REGION_DEVICE) == 0);
        self.regions.clear();
        self.regions.extend(memory.map(|info| Region {
            view,
            start: GuestAddress(info.gpa),
            size: info.size,
        }));
        self.seen = seen;
        Ok(())
    }

    fn show(&mut self, parts: &[(GuestAddress, usize)]) {
        let view = self.view;
        let region = |&(start, size): &(_, usize)| Region { view, start, size: size as u64 };
        self.regions = parts.iter().map(region).collect();
        self.seen = 0;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: freed once, not between begin and end. NULL is no view.
        unsafe { sys::gmem_view_free(self.view) }
    }
}

thread_local! {
    /// What this thread has of [`Memory`]: one for each VM at most.
    static MINE: RefCell<Vec<Weak<Memory>>> = RefCell::default();
}

/// The memory of a VM as it was when [`memory()`](vm_memory::GuestAddressSpace::memory) was
/// called, in the thread that called it.
///
/// Host addresses from here, in a [`VolatileSlice`] for example, stay mapped and shared until it
/// is dropped. A thread has one of each VM at a time: a second `memory()` returns the first.
/// It stays in its thread:
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<gmem::Memory>();
/// ```
#[derive(Debug)]
pub struct Memory {
    reader: Reader,
    vm: Arc<Handle>,
    here: PhantomData<Rc<()>>,
}

impl Memory {
    /// The one that this thread has. While a thread ends it may have no list any more.
    pub(crate) fn mine(vm: &Arc<Handle>) -> Option<Rc<Memory>> {
        let of_this_thread = MINE.try_with(|mine| {
            let mine = mine.borrow();
            let mut mine = mine.iter().filter_map(Weak::upgrade);
            mine.find(|memory| Arc::ptr_eq(&memory.vm, vm))
        });
        of_this_thread.unwrap_or(None)
    }

    /// A new one. It has all regions, or, for tests, these parts of them.
    pub(crate) fn new(
        vm: &Arc<Handle>,
        parts: Option<&[(GuestAddress, usize)]>,
    ) -> std::result::Result<Rc<Memory>, Error> {
        let reader = vm.take_idle().map_or_else(|| Reader::new(vm), Ok)?;
        // SAFETY: no other thread has this view, until drop() ends what this begins.
        unsafe { sys::gmem_view_begin(reader.view) };
        let vm = vm.clone();
        let mut memory = Memory { reader, vm, here: PhantomData };
        memory.reader.list_regions(&memory.vm)?;
        if let Some(parts) = parts {
            memory.reader.show(parts);
        }

        let memory = Rc::new(memory);
        let _ = MINE.try_with(|mine| mine.borrow_mut().push(Rc::downgrade(&memory)));
        Ok(memory)
    }

    /// The host address of memory in whatever regions that is contiguous for the host.
    pub(crate) fn hva(&self, gpa: u64, len: usize) -> std::result::Result<*mut u8, Error> {
        let everything = Region { view: self.reader.view, start: GuestAddress(0), size: u64::MAX };
        everything.hva(gpa, len)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let nothing = Reader { view: ptr::null_mut(), regions: Vec::new(), seen: 0 };
        let reader = std::mem::replace(&mut self.reader, nothing);
        // SAFETY: ends what new() began. All slices borrow from `self`, so there are none left.
        unsafe { sys::gmem_view_end(reader.view) };
        self.vm.give_back(reader);
        let _ = MINE.try_with(|mine| mine.borrow_mut().retain(|memory| memory.strong_count() > 0));
    }
}

impl GuestMemoryBackend for Memory {
    type R = Region;
    #[cfg(vm_memory_before_0_16)]
    type I = Self;

    fn num_regions(&self) -> usize {
        self.reader.regions.len()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&Region> {
        let regions = &self.reader.regions;
        let after = regions.partition_point(|region| region.start <= addr);
        let region = regions[..after].last()?;
        (addr.0 - region.start.0 < region.size).then_some(region)
    }

    #[cfg(vm_memory_before_0_16)]
    fn iter(&self) -> std::slice::Iter<'_, Region> {
        self.reader.regions.iter()
    }

    #[cfg(not(vm_memory_before_0_16))]
    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.reader.regions.iter()
    }
}

#[cfg(vm_memory_before_0_16)]
impl<'a> vm_memory::guest_memory::GuestMemoryIterator<'a, Region> for Memory {
    type Iter = std::slice::Iter<'a, Region>;
}

fn c_order(order: Ordering) -> u32 {
    match order {
        Ordering::Relaxed => sys::GMEM_RELAXED,
        Ordering::Acquire => sys::GMEM_ACQUIRE,
        Ordering::Release => sys::GMEM_RELEASE,
        _ => sys::GMEM_SEQ_CST,
    }
}

/// A region of a [`Memory`]. An access of it that fails says why, in an [`Error`].
#[derive(Debug)]
pub struct Region {
    view: *mut sys::gmem_view,
    start: GuestAddress,
    size: GuestUsize,
}

impl Region {
    /// The guest address of `addr`, and how many of `len` bytes there the region has.
    fn clip(&self, addr: MemoryRegionAddress, len: usize) -> Result<(u64, usize)> {
        match self.size.checked_sub(addr.0) {
            Some(0) | None if len > 0 => Err(GuestMemoryError::InvalidBackendAddress),
            None => Err(GuestMemoryError::InvalidBackendAddress),
            Some(rest) => Ok((self.start.0 + addr.0, rest.min(len as u64) as usize)),
        }
    }

    /// As clip(), but the region must have all of them.
    fn all(&self, addr: MemoryRegionAddress, len: usize) -> Result<u64> {
        let (gpa, clipped) = self.clip(addr, len)?;
        if clipped == len {
            Ok(gpa)
        } else {
            Err(GuestMemoryError::InvalidBackendAddress)
        }
    }

    fn hva(&self, gpa: u64, len: usize) -> std::result::Result<*mut u8, Error> {
        let mut hva = ptr::null_mut();
        // SAFETY: the view is between begin and end as long as its Memory, and so `self`, exists.
        Error::check(unsafe { sys::gmem_view_hva(self.view, gpa, len as u64, &mut hva) })?;
        Ok(hva.cast())
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.size
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    #[cfg(vm_memory_before_0_17)]
    fn bitmap(&self) -> &() {
        &()
    }

    #[cfg(not(vm_memory_before_0_17))]
    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        Ok(self.hva(self.all(addr, 1)?, 1)?)
    }

    fn get_slice(
        &self,
        addr: MemoryRegionAddress,
        len: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>> {
        let gpa = self.all(addr, len)?;
        let hva = match len {
            0 => NonNull::dangling().as_ptr(),
            _ => self.hva(gpa, len)?,
        };
        // SAFETY: `len` bytes there are mapped and shared as long as `self` exists.
        Ok(unsafe { VolatileSlice::new(hva, len) })
    }
}

/// Functions of [`Bytes`] that move data between the region and something else.
macro_rules! through_slices {
    ($($name:ident($other:path) -> $result:ty;)*) => {$(
        fn $name<F: $other>(
            &self,
            addr: MemoryRegionAddress,
            other: &mut F,
            len: usize,
        ) -> Result<$result> {
            let (_, clipped) = self.clip(addr, len)?;
            let slice = self.get_slice(addr, clipped)?;
            #[allow(deprecated)]
            slice.$name(0, other, len).map_err(Into::into)
        }
    )*};
}

impl Bytes<MemoryRegionAddress> for Region {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        let (_, len) = self.clip(addr, buf.len())?;
        self.write_slice(&buf[..len], addr)?;
        Ok(len)
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        let (_, len) = self.clip(addr, buf.len())?;
        self.read_slice(&mut buf[..len], addr)?;
        Ok(len)
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        let gpa = self.all(addr, buf.len())?;
        let (from, len, done) = (buf.as_ptr().cast(), buf.len() as u64, ptr::null_mut());
        // SAFETY: `buf` has `len` bytes; the library checks the guest's addresses.
        Error::check(unsafe { sys::gmem_view_write(self.view, gpa, from, len, done) })?;
        Ok(())
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        let gpa = self.all(addr, buf.len())?;
        let (to, len, done) = (buf.as_mut_ptr().cast(), buf.len() as u64, ptr::null_mut());
        // SAFETY: `buf` has room for `len` bytes; the library checks the guest's addresses.
        Error::check(unsafe { sys::gmem_view_read(self.view, gpa, to, len, done) })?;
        Ok(())
    }

    #[cfg(vm_memory_before_0_17)]
    through_slices! {
        read_from(std::io::Read) -> usize;
        read_exact_from(std::io::Read) -> ();
        write_to(std::io::Write) -> usize;
        write_all_to(std::io::Write) -> ();
    }

    #[cfg(not(vm_memory_before_0_17))]
    through_slices! {
        read_volatile_from(vm_memory::ReadVolatile) -> usize;
        read_exact_volatile_from(vm_memory::ReadVolatile) -> ();
        write_volatile_to(vm_memory::WriteVolatile) -> usize;
        write_all_volatile_to(vm_memory::WriteVolatile) -> ();
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> Result<()> {
        let gpa = self.all(addr, size_of::<T>())?;
        let mut number = [0; size_of::<u64>()];
        number[..size_of::<T>()].copy_from_slice(val.as_slice());
        let (width, number) = (size_of::<T>() as u32, u64::from_le_bytes(number));
        // SAFETY: numbers alone; the library checks them.
        Error::check(unsafe {
            sys::gmem_view_store(self.view, gpa, width, c_order(order), number)
        })?;
        Ok(())
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        let gpa = self.all(addr, size_of::<T>())?;
        let (width, mut number) = (size_of::<T>() as u32, 0u64);
        // SAFETY: `number` is there to be filled in; the library checks the rest.
        Error::check(unsafe {
            sys::gmem_view_load(self.view, gpa, width, c_order(order), &mut number)
        })?;
        // SAFETY: any bytes are a T, which is at most as large, and the first are those loaded.
        Ok(unsafe { ptr::read_unaligned(number.to_le_bytes().as_ptr().cast()) })
    }
}
