// SPDX-License-Identifier: MIT
//! The handle of a VM's memory, and leases.

use std::ffi::CString;
use std::os::raw::c_void;
use std::os::unix::io::AsRawFd;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestAddressSpace, VolatileSlice};

use crate::memory::{Memory, Reader};
use crate::{sys, Backing, Error, State};

/// Linux's number, on the architectures that have KVM
const EDEADLK: i32 = 35;

/// What all clones of a [`Vm`], and what they made, share.
#[derive(Debug)]
pub(crate) struct Handle {
    vm: NonNull<sys::gmem_vm>,
    listener: *mut sys::gmem_listener,
    /// How often memory came, went or moved; the listener counts.
    changes: Box<AtomicU64>,
    /// Views that no [`Memory`] uses.
    idle: Mutex<Vec<Reader>>,
    /// Held while a region is looked up and removed, so that nobody else removes it.
    removing: Mutex<()>,
}

// SAFETY: libgmem's functions of a VM are thread-safe, but for gmem_vm_free(), which drop()
// calls when nobody else has the handle.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// Counts a change. Called by libgmem, in the thread that makes it.
unsafe extern "C" fn changed(
    changes: *mut c_void,
    _region: *const sys::gmem_region_info,
    _gpa: u64,
    _size: u64,
) {
    // SAFETY: `changes` of the handle, which outlives its listener.
    let changes = unsafe { &*changes.cast::<AtomicU64>() };
    changes.fetch_add(1, Ordering::Release);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    pub(crate) fn as_ptr(&self) -> *mut sys::gmem_vm {
        self.vm.as_ptr()
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(crate) fn regions(&self) -> Result<Vec<sys::gmem_region_info>, Error> {
        let mut list = Vec::new();
        loop {
            let (ret, max) = (list.as_mut_ptr(), list.len());
            // SAFETY: `list` has `max` entries to be filled in.
            match Error::check(unsafe { sys::gmem_vm_regions(self.as_ptr(), ret, max as _) }) {
                Ok(count) => {
                    list.truncate(count as usize);
                    return Ok(list);
                }
                Err(_) if max < 1 << 20 => list.resize(2 * max + 8, Default::default()),
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn take_idle(&self) -> Option<Reader> {
        lock(&self.idle).pop()
    }

    pub(crate) fn give_back(&self, reader: Reader) {
        lock(&self.idle).push(reader);
    }

    fn listen(&mut self) -> Result<(), Error> {
        let opts = sys::gmem_listener_opts {
            size: std::mem::size_of::<sys::gmem_listener_opts>() as _,
            data: (&*self.changes as *const AtomicU64 as *mut AtomicU64).cast(),
            region_added: Some(changed),
            region_moved: Some(changed),
            region_removed: Some(changed),
            ..Default::default()
        };
        // SAFETY: the options live during the call, and `changes` until drop() ends the listener.
        Error::check(unsafe { sys::gmem_listener_new(self.as_ptr(), &opts, &mut self.listener) })?;
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Views and listeners must be gone before their VM.
        lock(&self.idle).clear();
        // SAFETY: each is freed once, and nobody has the handle any more. NULL is no listener.
        unsafe {
            sys::gmem_listener_free(self.listener);
            sys::gmem_vm_free(self.as_ptr());
        }
    }
}

/// The guest memory of a VM, for all threads. Clones are the same memory.
///
/// The memory is there until the last clone, [`Memory`] and [`Lease`] are dropped.
#[derive(Clone, Debug)]
pub struct Vm(Arc<Handle>);

impl Vm {
    /// Manages the memory of the VM with this fd, which libgmem duplicates.
    pub fn new(vm_fd: &impl AsRawFd) -> Result<Vm, Error> {
        let mut vm = ptr::null_mut();
        // SAFETY: `vm` is there to be filled in; any number may be passed as an fd.
        Error::check(unsafe { sys::gmem_vm_new(vm_fd.as_raw_fd(), ptr::null(), &mut vm) })?;

        let mut handle = Handle {
            vm: NonNull::new(vm).expect("gmem_vm_new() succeeded"),
            listener: ptr::null_mut(),
            changes: Box::new(AtomicU64::new(1)),
            idle: Mutex::default(),
            removing: Mutex::default(),
        };
        handle.listen()?;
        Ok(Vm(Arc::new(handle)))
    }

    /// The handle, for functions of [`sys`]. It is valid as long as this object or a clone.
    pub fn as_ptr(&self) -> *mut sys::gmem_vm {
        self.0.as_ptr()
    }

    /// Gives the guest memory, backed in the first of these ways that is possible here. None at
    /// all is libgmem's default, [`Backing::Shared`].
    pub fn add(&self, start: GuestAddress, size: u64, backings: &[Backing]) -> Result<(), Error> {
        self.can_wait()?;
        let mut request = sys::gmem_request {
            size: std::mem::size_of::<sys::gmem_request>() as _,
            ..Default::default()
        };
        for (entry, backing) in request.backings.iter_mut().zip(backings) {
            *entry = *backing as u32;
        }

        let mut opts = sys::gmem_region_opts {
            size: std::mem::size_of::<sys::gmem_region_opts>() as _,
            ..Default::default()
        };
        let (mut plan, mut region) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handle is valid, its report as long; the rest lives during each call, and
        // the plan, which is freed once, as long as the options.
        unsafe {
            let caps = sys::gmem_vm_caps(self.as_ptr());
            Error::check(sys::gmem_plan_new(caps, &request, &mut plan))?;
            opts.plan = plan;
            let added = sys::gmem_region_add(self.as_ptr(), start.0, size, &opts, &mut region);
            let result = Error::check(added).map(drop);
            sys::gmem_plan_free(plan);
            result
        }
    }

    /// Changes wait for each [`Memory`]: a thread that has one would wait for itself.
    fn can_wait(&self) -> Result<(), Error> {
        match Memory::mine(&self.0) {
            Some(_) => Err(Error {
                errno: EDEADLK,
                sentence: "this thread would wait for itself: it has a Memory of this VM".into(),
            }),
            None => Ok(()),
        }
    }

    /// Takes away the region that has this address, when each [`Memory`] of now is dropped.
    pub fn remove(&self, addr: GuestAddress) -> Result<(), Error> {
        self.can_wait()?;
        let mut info = sys::gmem_region_info::default();
        let _removing = lock(&self.0.removing);
        // SAFETY: `info` is there to be filled in, and nobody else removes the region meanwhile:
        // that needs the lock, or unsafe code of the caller's.
        unsafe {
            Error::check(sys::gmem_vm_find_gpa(self.as_ptr(), addr.0, &mut info))?;
            Error::check(sys::gmem_region_remove(info.region))?;
        }
        Ok(())
    }

    /// Makes memory private or shared, when each [`Memory`] of now is dropped.
    pub fn convert(&self, start: GuestAddress, size: u64, state: State) -> Result<(), Error> {
        self.can_wait()?;
        let (opts, result) = (ptr::null(), ptr::null_mut());
        // SAFETY: the handle is valid, and NULL are the defaults.
        let converted = unsafe {
            sys::gmem_vm_convert(self.as_ptr(), start.0, size, state as u32, opts, result)
        };
        Error::check(converted).map(drop)
    }

    /// Keeps memory shared and where it is, for I/O that takes longer than a [`Memory`] should.
    ///
    /// It must be contiguous for the host. `holder` is for sentences about who has it.
    pub fn lease(&self, start: GuestAddress, size: usize, holder: &str) -> Result<Lease, Error> {
        let holder = CString::new(holder.replace('\0', "?")).unwrap_or_default();
        let opts = sys::gmem_lease_opts {
            size: std::mem::size_of::<sys::gmem_lease_opts>() as _,
            holder: holder.as_ptr(),
        };
        let mut lease =
            Lease { lease: ptr::null_mut(), hva: ptr::null_mut(), size, _vm: self.0.clone() };
        let (vm, bytes) = (self.as_ptr(), size as u64);
        // SAFETY: the handle is valid, the options live during the call.
        Error::check(unsafe { sys::gmem_lease_new(vm, start.0, bytes, &opts, &mut lease.lease) })?;
        lease.hva = self.memory().hva(start.0, size)?;
        Ok(lease)
    }

    /// Memory with other regions than the VM has, such as tests of vm-memory want them, which
    /// may be smaller than a page.
    #[doc(hidden)]
    pub fn memory_in_parts(&self, parts: &[(GuestAddress, usize)]) -> Result<Rc<Memory>, Error> {
        Memory::mine(&self.0).map_or_else(|| Memory::new(&self.0, Some(parts)), Ok)
    }
}

impl GuestAddressSpace for Vm {
    type M = Memory;
    type T = Rc<Memory>;

    /// Memory as it is at this moment. Drop it after each request, before the thread waits:
    /// whoever removes memory, or makes it private, waits for that.
    ///
    /// Panics if there is no memory for a new view; dropped ones are used again.
    fn memory(&self) -> Rc<Memory> {
        let mine = Memory::mine(&self.0);
        mine.unwrap_or_else(|| Memory::new(&self.0, None).unwrap_or_else(|error| panic!("{error}")))
    }
}

/// Memory that stays shared and in its place until this is dropped: see [`Vm::lease`].
#[derive(Debug)]
pub struct Lease {
    lease: *mut sys::gmem_lease,
    hva: *mut u8,
    size: usize,
    _vm: Arc<Handle>,
}

// SAFETY: a lease belongs to no thread, and its memory is accessed through VolatileSlice alone.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

impl Lease {
    /// The memory. An access to a page that cannot be had raises SIGBUS.
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the lease keeps this memory mapped, and the result borrows from it.
        unsafe { VolatileSlice::new(self.hva, self.size) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: freed once, before its VM, which it holds.
        unsafe { sys::gmem_lease_free(self.lease) }
    }
}
