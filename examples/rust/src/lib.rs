// SPDX-License-Identifier: MIT
//! [vm-memory](vm_memory)'s traits over guest memory that libgmem manages.
//!
//! [`Vm`] owns libgmem's handle of a VM: it adds, removes and converts memory, in any thread.
//! It is a [`GuestAddressSpace`](vm_memory::GuestAddressSpace), so virtio devices of rust-vmm
//! take it where they take a `GuestMemoryAtomic`. Its `memory()` is a [`Memory`], which is what
//! vm-memory 0.18 calls `GuestMemoryBackend`, and older versions `GuestMemory`.
//!
//! ```no_run
//! use gmem::{Backing, Vm};
//! use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let vm_fd = std::fs::File::open("/dev/kvm")?; // stands for a VM's
//! gmem::enable_recovery()?;
//! let vm = Vm::new(&vm_fd)?;
//! vm.add(GuestAddress(0), 64 << 20, &[Backing::Shared, Backing::Host])?;
//! vm.memory().write_obj(0x1234u16, GuestAddress(0x1000))?;
//! # Ok(())
//! # }
//! ```
//!
//! What libgmem offers beyond that is in [`sys`], which bindgen makes of gmem.h, with
//! [`Vm::as_ptr`] for the handle.

#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
#![allow(unknown_lints, unexpected_cfgs)] // build.rs sets them; old compilers know of neither

mod memory;
mod vm;

pub use memory::{Memory, Region};
pub use vm::{Lease, Vm};

/// The C API, as bindgen reads gmem.h.
#[allow(missing_docs, non_camel_case_types, clippy::all, clippy::undocumented_unsafe_blocks)]
#[allow(rustdoc::all, dead_code)]
pub mod sys {
    include!(concat!(env!("OUT_DIR"), "/sys.rs"));
}

use std::ffi::CStr;
use std::os::raw::c_int;
use std::{fmt, io};

/// A way guest memory can be backed: `enum gmem_backing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Backing {
    /// Ordinary host memory, on every kernel.
    Host = sys::GMEM_BACKING_HOST,
    /// The mapping of a guest_memfd in an ordinary memslot.
    Mapped = sys::GMEM_BACKING_MAPPED,
    /// A guest_memfd that host and guest share.
    Shared = sys::GMEM_BACKING_SHARED,
    /// A private guest_memfd, and shared memory beside it.
    Private = sys::GMEM_BACKING_PRIVATE,
    /// A guest_memfd that is converted in place.
    InPlace = sys::GMEM_BACKING_INPLACE,
}

/// Who can reach memory: `GMEM_STATE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Guest and host.
    Shared = sys::GMEM_STATE_SHARED,
    /// The guest alone: accesses of ours are refused.
    Private = sys::GMEM_STATE_PRIVATE,
}

/// What libgmem refused: an errno, and a sentence with the numbers involved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub(crate) errno: i32,
    pub(crate) sentence: String,
}

impl Error {
    /// The errno, such as `libc::EACCES` for private memory; positive.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// What a function of the library returned, which has just been called in this thread.
    pub fn check(returned: c_int) -> Result<c_int, Error> {
        if returned >= 0 {
            return Ok(returned);
        }
        // SAFETY: never NULL, and valid until this thread's next call of the library.
        let sentence = unsafe { CStr::from_ptr(sys::gmem_last_error()) };
        Err(Error { errno: -returned, sentence: sentence.to_string_lossy().into_owned() })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Error {}

impl From<Error> for vm_memory::GuestMemoryError {
    /// An `IOError` that still holds the [`Error`]: `get_ref()` and `downcast_ref()` find it.
    fn from(error: Error) -> Self {
        let kind = io::Error::from_raw_os_error(error.errno).kind();
        vm_memory::GuestMemoryError::IOError(io::Error::new(kind, error))
    }
}

/// Makes accesses as fast as memcpy(3), with handlers of SIGBUS and SIGSEGV for the process.
///
/// Call it once, early. Without it each access of a [`Region`] is a system call. The handlers
/// pass on what is not libgmem's, such as stack overflows, which Rust reports itself.
pub fn enable_recovery() -> Result<(), Error> {
    // SAFETY: no arguments; it is thread-safe.
    Error::check(unsafe { sys::gmem_recovery_enable() }).map(drop)
}
