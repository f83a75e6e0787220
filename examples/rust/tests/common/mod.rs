// SPDX-License-Identifier: MIT
//! A VM for tests.

use std::fs::{File, OpenOptions};
use std::os::unix::io::{AsRawFd, FromRawFd};

use gmem::{Backing, Error, Vm};

const KVM_CREATE_VM: libc::c_ulong = 0xae01;

/// Guest memory needs a VM. Without /dev/kvm a test says so, and does nothing.
pub fn vm() -> Option<Vm> {
    vm_of_type(0)
}

/// As vm(), of a type that this kernel may not have.
pub fn vm_of_type(vm_type: libc::c_ulong) -> Option<Vm> {
    let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("not tested: /dev/kvm: {error}");
            return None;
        }
    };
    // SAFETY: an ioctl without pointers, on a file that is open.
    let vm_fd = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, vm_type) };
    if vm_fd < 0 {
        let error = std::io::Error::last_os_error();
        assert!(vm_type != 0, "KVM_CREATE_VM: {error}");
        eprintln!("not tested: a VM of type {vm_type}: {error}");
        return None;
    }
    // SAFETY: a new fd, which nobody else has.
    let vm_fd = unsafe { File::from_raw_fd(vm_fd) };
    gmem::enable_recovery().unwrap();
    Some(Vm::new(&vm_fd).unwrap())
}

pub fn add(vm: &Vm, start: u64, size: u64) -> Result<(), Error> {
    vm.add(vm_memory::GuestAddress(start), size, &[Backing::Shared, Backing::Host])
}
