// SPDX-License-Identifier: MIT
//! A VM for tests.

use std::fs::{File, OpenOptions};
use std::os::unix::io::{AsRawFd, FromRawFd};

use gmem::{Backing, Error, Vm};

const KVM_CREATE_VM: libc::c_ulong = 0xae01;

/// Guest memory needs a VM. Without /dev/kvm a test says so, and does nothing.
pub fn vm() -> Option<Vm> {
    let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("not tested: /dev/kvm: {error}");
            return None;
        }
    };
    // SAFETY: an ioctl without pointers, on a file that is open.
    let vm_fd = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    assert!(vm_fd >= 0, "KVM_CREATE_VM: {}", std::io::Error::last_os_error());
    // SAFETY: a new fd, which nobody else has.
    let vm_fd = unsafe { File::from_raw_fd(vm_fd) };
    gmem::enable_recovery().unwrap();
    Some(Vm::new(&vm_fd).unwrap())
}

pub fn add(vm: &Vm, start: u64, size: u64) -> Result<(), Error> {
    vm.add(vm_memory::GuestAddress(start), size, &[Backing::Shared, Backing::Host])
}
