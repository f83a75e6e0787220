// SPDX-License-Identifier: MIT
//! rust-vmm's vm-memory and virtio-queue behind the C ABI of peer.h.
//!
//! Every function that is measured has its loop in here, so that a call across
//! the language border is not part of what is measured.

use std::ffi::c_void;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::*;

const PROT_READ_WRITE: i32 = 3;
const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;

#[repr(C)]
pub struct Range {
    gpa: u64,
    size: u64,
    hva: *mut u8,
}

pub struct Peer {
    memory: GuestMemoryMmap<()>,
    atomic: GuestMemoryAtomic<GuestMemoryMmap<()>>,
}

unsafe fn region(range: &Range) -> GuestRegionMmap<()> {
    let mapping = MmapRegion::build_raw(
        range.hva,
        range.size as usize,
        PROT_READ_WRITE,
        MAP_PRIVATE_ANONYMOUS,
    );

    GuestRegionMmap::new(mapping.unwrap(), GuestAddress(range.gpa)).unwrap()
}

#[no_mangle]
pub unsafe extern "C" fn peer_new(ranges: *const Range, count: usize) -> *mut Peer {
    let regions = from_raw_parts(ranges, count).iter().map(|r| region(r)).collect();
    let memory = GuestMemoryMmap::from_regions(regions).unwrap();
    let atomic = GuestMemoryAtomic::new(memory.clone());

    Box::into_raw(Box::new(Peer { memory, atomic }))
}

#[no_mangle]
pub unsafe extern "C" fn peer_free(peer: *mut Peer) {
    drop(Box::from_raw(peer));
}

/// Sum of the host addresses behind `count` guest addresses.
#[no_mangle]
pub unsafe extern "C" fn peer_translate(
    peer: *const Peer,
    gpas: *const u64,
    count: usize,
    size: usize,
) -> u64 {
    let memory = &(*peer).memory;
    let mut sum = 0u64;

    for &gpa in from_raw_parts(gpas, count) {
        let slice = memory.get_slice(GuestAddress(gpa), size).unwrap();
        sum = sum.wrapping_add(slice.ptr_guard().as_ptr() as u64);
    }
    sum
}

/// The same while the memory map may be replaced.
#[no_mangle]
pub unsafe extern "C" fn peer_translate_atomic(
    peer: *const Peer,
    gpas: *const u64,
    count: usize,
    size: usize,
) -> u64 {
    let atomic = &(*peer).atomic;
    let mut sum = 0u64;

    for &gpa in from_raw_parts(gpas, count) {
        let memory = atomic.memory();
        let slice = memory.get_slice(GuestAddress(gpa), size).unwrap();
        sum = sum.wrapping_add(slice.ptr_guard().as_ptr() as u64);
    }
    sum
}

#[no_mangle]
pub unsafe extern "C" fn peer_read_slice(
    peer: *const Peer,
    gpas: *const u64,
    count: usize,
    buf: *mut c_void,
    size: usize,
) {
    let buf = from_raw_parts_mut(buf as *mut u8, size);

    for &gpa in from_raw_parts(gpas, count) {
        (*peer).memory.read_slice(buf, GuestAddress(gpa)).unwrap();
    }
}

#[no_mangle]
pub unsafe extern "C" fn peer_write_slice(
    peer: *const Peer,
    gpas: *const u64,
    count: usize,
    buf: *const c_void,
    size: usize,
) {
    let buf = from_raw_parts(buf as *const u8, size);

    for &gpa in from_raw_parts(gpas, count) {
        (*peer).memory.write_slice(buf, GuestAddress(gpa)).unwrap();
    }
}

/// Sum of the numbers at `count` guest addresses.
#[no_mangle]
pub unsafe extern "C" fn peer_read_obj(peer: *const Peer, gpas: *const u64, count: usize) -> u64 {
    let memory = &(*peer).memory;
    let mut sum = 0u64;

    for &gpa in from_raw_parts(gpas, count) {
        let value: u64 = memory.read_obj(GuestAddress(gpa)).unwrap();
        sum = sum.wrapping_add(value);
    }
    sum
}

#[no_mangle]
pub unsafe extern "C" fn peer_write_obj(
    peer: *const Peer,
    gpas: *const u64,
    count: usize,
    value: u64,
) {
    for &gpa in from_raw_parts(gpas, count) {
        (*peer).memory.write_obj(value, GuestAddress(gpa)).unwrap();
    }
}

/// Sum of the numbers at `count` guest addresses, each loaded at once.
#[no_mangle]
pub unsafe extern "C" fn peer_load(peer: *const Peer, gpas: *const u64, count: usize) -> u64 {
    let memory = &(*peer).memory;
    let mut sum = 0u64;

    for &gpa in from_raw_parts(gpas, count) {
        let value: u64 = memory.load(GuestAddress(gpa), Ordering::Acquire).unwrap();
        sum = sum.wrapping_add(value);
    }
    sum
}

#[no_mangle]
pub unsafe extern "C" fn peer_store(peer: *const Peer, gpas: *const u64, count: usize, value: u64) {
    for &gpa in from_raw_parts(gpas, count) {
        (*peer).memory.store(value, GuestAddress(gpa), Ordering::Release).unwrap();
    }
}

/// A virtqueue, and how far its device is.
#[repr(C)]
pub struct Virtqueue {
    descriptors: u64,
    avail: u64,
    used: u64,
    next: u16,
    size: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Descriptor {
    gpa: u64,
    size: u32,
    flags: u16,
    next: u16,
}

unsafe impl ByteValued for Descriptor {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Used {
    head: u32,
    size: u32,
}

unsafe impl ByteValued for Used {}

/// Serve what is available, one chain at a time, with vm-memory's calls alone.
#[no_mangle]
pub unsafe extern "C" fn peer_serve(peer: *const Peer, queue: *mut Virtqueue, buf: *mut c_void) {
    let memory = &(*peer).memory;
    let queue = &mut *queue;

    loop {
        let avail: u16 = memory.load(GuestAddress(queue.avail + 2), Ordering::Acquire).unwrap();
        if avail == queue.next {
            break;
        }
        let at = (queue.next % queue.size) as u64;
        let head: u16 = memory.read_obj(GuestAddress(queue.avail + 4 + 2 * at)).unwrap();
        assert!(head < queue.size);
        let descriptor: Descriptor =
            memory.read_obj(GuestAddress(queue.descriptors + 16 * head as u64)).unwrap();
        let buf = from_raw_parts_mut(buf as *mut u8, descriptor.size as usize);
        memory.read_slice(buf, GuestAddress(descriptor.gpa)).unwrap();
        let used = Used { head: head as u32, size: 0 };
        memory.write_obj(used, GuestAddress(queue.used + 4 + 8 * at)).unwrap();
        queue.next = queue.next.wrapping_add(1);
        memory.store(queue.next, GuestAddress(queue.used + 2), Ordering::Release).unwrap();
    }
}

/// The same with virtio-queue: a queue of `peer_queue_new`.
#[no_mangle]
pub unsafe extern "C" fn peer_serve_queue(peer: *const Peer, queue: *mut Queue, buf: *mut c_void) {
    let memory = &(*peer).memory;
    let queue = &mut *queue;

    while let Some(mut chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let descriptor = chain.next().unwrap();
        let buf = from_raw_parts_mut(buf as *mut u8, descriptor.len() as usize);
        memory.read_slice(buf, descriptor.addr()).unwrap();
        queue.add_used(memory, head, 0).unwrap();
    }
}

/// virtio-queue's own idea of a queue; where its device is, is in there.
#[no_mangle]
pub unsafe extern "C" fn peer_queue_new(from: *const Virtqueue) -> *mut Queue {
    let from = &*from;
    let mut queue = Queue::new(from.size).unwrap();

    queue.try_set_desc_table_address(GuestAddress(from.descriptors)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(from.avail)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(from.used)).unwrap();
    queue.set_next_avail(from.next);
    queue.set_next_used(from.next);
    queue.set_ready(true);
    Box::into_raw(Box::new(queue))
}

#[no_mangle]
pub unsafe extern "C" fn peer_queue_free(queue: *mut Queue) {
    drop(Box::from_raw(queue));
}

/// Publish a memory map with one region more, or with it gone again.
#[no_mangle]
pub unsafe extern "C" fn peer_change(peer: *const Peer, range: *const Range, add: bool) {
    let guard = (*peer).atomic.lock().unwrap();
    let now = (*peer).atomic.memory();
    let next = if add {
        now.insert_region(Arc::new(region(&*range))).unwrap()
    } else {
        now.remove_region(GuestAddress((*range).gpa), (*range).size).unwrap().0
    };

    guard.replace(next);
}

/// What a file has from where it is on, into guest memory.
#[no_mangle]
pub unsafe extern "C" fn peer_read_from(peer: *const Peer, gpa: u64, fd: i32, size: u64) {
    let mut file = ManuallyDrop::new(File::from_raw_fd(fd));
    let memory = &(*peer).memory;

    memory.read_exact_volatile_from(GuestAddress(gpa), &mut *file, size as usize).unwrap();
}
