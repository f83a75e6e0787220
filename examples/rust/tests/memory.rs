// SPDX-License-Identifier: MIT
//! What libgmem adds to vm-memory: memory that goes, is refused, or is held.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gmem::{Backing, Error, Lease, Memory, State, Vm};
#[allow(unused_imports)] // GuestMemory of older ones, GuestMemoryBackend of newer ones
use vm_memory::*;

mod common;
use common::{add, vm, vm_of_type};

/// A type of VM that has private memory, for tests
const KVM_X86_SW_PROTECTED_VM: libc::c_ulong = 1;

const RAM: u64 = 4 << 20;
const FAR: GuestAddress = GuestAddress(1 << 32);

/// A VM with RAM at 0 and at FAR, or nothing without KVM.
fn vm_with_ram() -> Option<Vm> {
    let vm = vm()?;
    add(&vm, 0, RAM).unwrap();
    add(&vm, FAR.0, RAM).unwrap();
    Some(vm)
}

fn cause(error: GuestMemoryError) -> Error {
    match error {
        GuestMemoryError::IOError(error) => {
            error.get_ref().and_then(|error| error.downcast_ref::<Error>()).unwrap().clone()
        }
        other => panic!("no error of the library's: {other:?}"),
    }
}

#[test]
fn threads_share_a_vm_and_leases_and_move_no_memory() {
    fn shared<T: Send + Sync>() {}
    shared::<Vm>();
    shared::<Lease>();
    shared::<Error>();
}

#[test]
fn regions_are_those_of_the_moment() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let before = vm.memory();
    assert_eq!(before.num_regions(), 2);
    assert_eq!(before.last_addr().0, FAR.0 + RAM - 1);
    assert!(before.find_region(GuestAddress(RAM)).is_none());
    drop(before);

    vm.remove(FAR).unwrap();
    assert_eq!(vm.memory().num_regions(), 1);
    add(&vm, FAR.0, RAM).unwrap();
    assert_eq!(vm.memory().num_regions(), 2);
}

#[test]
fn a_refusal_has_an_errno_and_a_sentence() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let error = add(&vm, 0, RAM).unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
    assert!(error.to_string().contains("0x0"), "{error}");
    assert_eq!(vm.remove(GuestAddress(RAM)).unwrap_err().errno(), libc::ENOENT);
}

#[test]
fn memory_is_there_until_it_is_dropped() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let removed = AtomicBool::new(false);
    let memory = vm.memory();

    thread::scope(|scope| {
        scope.spawn(|| {
            vm.remove(FAR).unwrap();
            removed.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!removed.load(Ordering::SeqCst));
        memory.get_slice(FAR, 8).unwrap().write_obj(7u64, 0).unwrap();
        // The second is the first, and so does not wait for the removal.
        assert_eq!(vm.memory().read_obj::<u64>(FAR).unwrap(), 7);
        drop(memory);
    });
    assert!(removed.load(Ordering::SeqCst));
    assert!(vm.memory().get_slice(FAR, 8).is_err());
}

#[test]
fn a_thread_cannot_wait_for_itself() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let _memory = vm.memory();
    assert_eq!(vm.remove(FAR).unwrap_err().errno(), libc::EDEADLK);
    assert_eq!(add(&vm, RAM, RAM).unwrap_err().errno(), libc::EDEADLK);
    assert_eq!(vm.convert(FAR, RAM, State::Private).unwrap_err().errno(), libc::EDEADLK);
}

#[test]
fn a_lease_keeps_memory_and_vm() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let lease = vm.lease(FAR, 4096, "a disk").unwrap();
    let refused = vm.remove(FAR).unwrap_err();
    assert_eq!(refused.errno(), libc::EBUSY);
    assert!(refused.to_string().contains("a disk"), "{refused}");
    assert!(vm.lease(GuestAddress(RAM - 4096), 8192, "more").is_err());

    drop(vm);
    let reader = thread::spawn(move || {
        lease.as_volatile_slice().write_obj(5u32, 0).unwrap();
        lease.as_volatile_slice().read_obj::<u32>(0).unwrap()
    });
    assert_eq!(reader.join().unwrap(), 5);
}

#[test]
fn memory_outlives_its_vm_in_any_order() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let (first, second) = (vm.memory(), vm.clone());
    drop(vm);
    let memory = second.memory();
    drop((second, first));
    memory.write_obj(1u8, FAR).unwrap();
}

#[test]
fn numbers_have_all_widths_and_must_be_aligned() {
    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    let memory = vm.memory();
    memory.store(0x8877_6655_4433_2211u64, FAR, Ordering::Release).unwrap();
    assert_eq!(memory.load::<u8>(FAR, Ordering::Relaxed).unwrap(), 0x11);
    assert_eq!(memory.load::<i16>(FAR, Ordering::Acquire).unwrap(), 0x2211);
    assert_eq!(memory.load::<u32>(FAR, Ordering::SeqCst).unwrap(), 0x4433_2211);
    memory.store(-2i8, GuestAddress(FAR.0 + 7), Ordering::Relaxed).unwrap();
    assert_eq!(memory.load::<i64>(FAR, Ordering::SeqCst).unwrap() >> 48, -0x189);
    assert!(memory.load::<u32>(GuestAddress(FAR.0 + 2), Ordering::SeqCst).is_err());
    assert!(memory.load::<u32>(GuestAddress(FAR.0 + RAM - 2), Ordering::SeqCst).is_err());
}

#[test]
fn private_memory_is_refused() {
    let vm = match vm_of_type(KVM_X86_SW_PROTECTED_VM) {
        Some(vm) => vm,
        None => return,
    };
    if let Err(error) = vm.add(FAR, RAM, &[Backing::Private]) {
        eprintln!("not tested: {error}");
        return;
    }
    vm.memory().write_obj(7u8, FAR).unwrap();
    vm.convert(FAR, 4096, State::Private).unwrap();

    let memory: &Memory = &vm.memory();
    let region = memory.find_region(FAR).unwrap();
    let error = cause(region.read(&mut [0], MemoryRegionAddress(0)).unwrap_err());
    assert_eq!(error.errno(), libc::EACCES);
    assert!(error.to_string().contains("private"), "{error}");
    assert_eq!(cause(memory.read_obj::<u8>(FAR).unwrap_err()).errno(), libc::EACCES);
    assert!(memory.get_host_address(FAR).is_err());
    assert!(memory.get_slice(FAR, 4097).is_err());
    assert!(memory.get_slice(GuestAddress(FAR.0 + 4096), 1).is_ok());
    assert!(vm.lease(FAR, 1, "a disk").is_err());
}

#[test]
fn a_thread_has_memory_to_its_end() {
    struct AtTheEnd(Vm);
    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            assert_eq!(self.0.memory().read_obj::<u8>(FAR).unwrap(), 9);
            self.0.lease(FAR, 1, "a disk").unwrap();
            self.0.remove(GuestAddress(0)).unwrap();
        }
    }
    thread_local! {
        static LAST: RefCell<Option<AtTheEnd>> = RefCell::default();
    }

    let vm = match vm_with_ram() {
        Some(vm) => vm,
        None => return,
    };
    vm.memory().write_obj(9u8, FAR).unwrap();
    let of_thread = vm.clone();
    let thread = thread::spawn(move || {
        // Set first, so that it is the last that the thread drops.
        LAST.with(|last| *last.borrow_mut() = Some(AtTheEnd(of_thread.clone())));
        drop(of_thread.memory());
    });
    thread.join().unwrap();
    assert!(vm.memory().read_obj::<u8>(GuestAddress(0)).is_err());
}
