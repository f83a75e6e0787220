// SPDX-License-Identifier: MIT
//! vm-memory as its tests and those of virtio-queue want it, but for the memory: what they
//! call GuestMemoryMmap is guest memory of libgmem's, in a VM.

use std::cell::UnsafeCell;
use std::fs::{File, OpenOptions};
use std::marker::PhantomData;
use std::os::unix::io::{AsRawFd, FromRawFd};
use std::rc::Rc;

use gmem::{Backing, Memory, Region, Vm};
#[cfg(not(feature = "backend"))]
use real::GuestMemory as GuestMemoryBackend;
pub use real::*;

const PAGE: u64 = 4096;
const KVM_CREATE_VM: libc::c_ulong = 0xae01;

fn new_vm() -> Vm {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap();
    // SAFETY: an ioctl without pointers, on a file that is open.
    let vm_fd = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    assert!(vm_fd >= 0, "KVM_CREATE_VM: {}", std::io::Error::last_os_error());
    // SAFETY: a new fd, which nobody else has.
    let vm_fd = unsafe { File::from_raw_fd(vm_fd) };
    gmem::enable_recovery().unwrap();
    Vm::new(&vm_fd).unwrap()
}

pub struct GuestMemoryMmap<B = ()> {
    vm: Vm,
    ranges: Vec<(GuestAddress, usize)>,
    /// Of the thread that uses it first.
    memory: UnsafeCell<Option<Rc<Memory>>>,
    bitmap: PhantomData<B>,
}

// SAFETY: tests move it to another thread right after clone(), when it has no memory yet.
unsafe impl Send for GuestMemoryMmap {}

impl<B> Clone for GuestMemoryMmap<B> {
    fn clone(&self) -> Self {
        GuestMemoryMmap {
            vm: self.vm.clone(),
            ranges: self.ranges.clone(),
            memory: UnsafeCell::new(None),
            bitmap: PhantomData,
        }
    }
}

impl<B> GuestMemoryMmap<B> {
    /// Whole pages that have these ranges; what is shown of them is the ranges alone.
    pub fn from_ranges(ranges: &[(GuestAddress, usize)]) -> Result<Self, gmem::Error> {
        let vm = new_vm();
        let mut end = 0;
        for &(start, size) in ranges {
            let first = end.max(start.0 / PAGE * PAGE);
            end = end.max((start.0 + size as u64 + PAGE - 1) / PAGE * PAGE);
            if first < end {
                vm.add(GuestAddress(first), end - first, &[Backing::Shared, Backing::Host])?;
            }
        }
        Ok(GuestMemoryMmap {
            vm,
            ranges: ranges.to_vec(),
            memory: UnsafeCell::new(None),
            bitmap: PhantomData,
        })
    }

    /// The files are not used: tests only tell them apart where mmap(2) is what they test.
    pub fn from_ranges_with_files(
        ranges: &[(GuestAddress, usize, Option<FileOffset>)],
    ) -> Result<Self, gmem::Error> {
        let ranges: Vec<_> = ranges.iter().map(|range| (range.0, range.1)).collect();
        Self::from_ranges(&ranges)
    }

    fn memory(&self) -> &Memory {
        // SAFETY: one thread alone uses this object, and what is set stays.
        let memory = unsafe { &mut *self.memory.get() };
        memory.get_or_insert_with(|| self.vm.memory_in_parts(&self.ranges).unwrap())
    }
}

impl<B: 'static> GuestMemoryBackend for GuestMemoryMmap<B> {
    type R = Region;
    #[cfg(feature = "iterator")]
    type I = Memory;

    fn num_regions(&self) -> usize {
        self.memory().num_regions()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&Region> {
        self.memory().find_region(addr)
    }

    #[cfg(feature = "iterator")]
    fn iter(&self) -> std::slice::Iter<'_, Region> {
        self.memory().iter()
    }

    #[cfg(not(feature = "iterator"))]
    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.memory().iter()
    }
}

/// Tests ask a region where it is.
pub trait AsPtr {
    fn as_ptr(&self) -> *mut u8;
}

impl AsPtr for Region {
    fn as_ptr(&self) -> *mut u8 {
        self.get_host_address(MemoryRegionAddress(0)).unwrap()
    }
}

pub struct MmapRegion(usize);

impl MmapRegion {
    pub fn new(size: usize) -> Option<Self> {
        Some(MmapRegion(size))
    }
}

pub struct GuestRegionMmap(GuestMemoryMmap, GuestAddress);

impl GuestRegionMmap {
    pub fn from_range(start: GuestAddress, size: usize, _: Option<FileOffset>) -> Option<Self> {
        Self::new(MmapRegion(size), start)
    }

    pub fn new(region: MmapRegion, start: GuestAddress) -> Option<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(start, region.0)]).unwrap();
        Some(GuestRegionMmap(memory, start))
    }
}

impl std::ops::Deref for GuestRegionMmap {
    type Target = Region;

    fn deref(&self) -> &Region {
        self.0.find_region(self.1).unwrap()
    }
}

/// What tests use of vmm-sys-util's, which Debian 12 has not
pub struct TempFile(File);

impl TempFile {
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: a string that ends, and a new fd, which nobody else has.
        let fd = unsafe { libc::memfd_create(b"test\0".as_ptr().cast(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        // SAFETY: as above.
        Ok(TempFile(unsafe { File::from_raw_fd(fd) }))
    }

    pub fn into_file(self) -> File {
        self.0
    }
}
