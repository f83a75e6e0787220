#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Say what this host can do for guest memory; with --dump, too, what a small VM's memory is.

Calls libgmem with ctypes. Exit status: 0, 1 if something failed, 77 if there is no KVM.
"""
import argparse
import ctypes
import fcntl
import itertools
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any

VERSION = "0.1"  # of the header that this was written for
KVM_CREATE_VM = 0xAE01
ANSWERS = ("unknown", "no", "yes")


class Finding(ctypes.Structure):
    """struct gmem_finding"""
    _fields_ = [("name", c_char_p), ("title", c_char_p), ("reason", c_char_p),
                ("remedy", c_char_p), ("value", c_int64), ("answer", c_uint32),
                ("has_value", c_uint32)]


PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "gmem_last_error": (c_char_p, []),
    "gmem_version": (c_char_p, []),
    "gmem_caps_new": (c_int, [c_int, c_void_p, POINTER(c_void_p)]),
    "gmem_caps_get": (c_int, [c_void_p, c_uint32, POINTER(Finding)]),
    "gmem_caps_free": (None, [c_void_p]),
    "gmem_vm_new": (c_int, [c_int, c_void_p, POINTER(c_void_p)]),
    "gmem_vm_free": (None, [c_void_p]),
    "gmem_region_add": (c_int, [c_void_p, c_uint64, c_uint64, c_void_p, POINTER(c_void_p)]),
    "gmem_vm_dump": (c_int, [c_void_p, c_int, c_void_p]),
}


def load() -> ctypes.CDLL:
    """The library, whose functions raise OSError with its sentence where C has an errno."""
    gmem = ctypes.CDLL("libgmem.so.0")

    def check(result: int, _function: Any, _arguments: Any) -> int:
        if result < 0:
            raise OSError(-result, gmem.gmem_last_error().decode())
        return result

    for name, (restype, argtypes) in PROTOTYPES.items():
        function = getattr(gmem, name)
        function.restype, function.argtypes = restype, argtypes
        if restype is c_int:
            function.errcheck = check
    version = gmem.gmem_version().decode()
    if not version.startswith(VERSION + "."):
        raise OSError(0, f"this is written for libgmem {VERSION}, and that is {version}")
    return gmem


def probe(gmem: ctypes.CDLL, vm_fd: int) -> None:
    """Print the report of a VM, or with -1 of this host."""
    caps, finding = c_void_p(), Finding()
    gmem.gmem_caps_new(vm_fd, None, byref(caps))
    try:
        for line in itertools.count():
            gmem.gmem_caps_get(caps, line, byref(finding))
            value = f" ({finding.value})" if finding.has_value else ""
            print(f"{finding.title.decode():36} {ANSWERS[finding.answer]}{value}")
    except FileNotFoundError:  # there are no more lines
        pass
    gmem.gmem_caps_free(caps)


def dump(gmem: ctypes.CDLL, vm_fd: int) -> None:
    """Give the VM 64 MiB, and write what it has as JSON: see gmem-dump(5)."""
    vm, region = c_void_p(), c_void_p()
    gmem.gmem_vm_new(vm_fd, None, byref(vm))
    try:
        gmem.gmem_region_add(vm, 0, 64 << 20, None, byref(region))
        sys.stdout.flush()
        gmem.gmem_vm_dump(vm, sys.stdout.fileno(), None)
    finally:
        gmem.gmem_vm_free(vm)


def main() -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dump", action="store_true", help="dump the memory of a VM of 64 MiB")
    arguments = parser.parse_args()
    try:
        gmem = load()
        try:
            vm_fd = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC), KVM_CREATE_VM, 0)
        except OSError as error:
            probe(gmem, -1)
            print(f"There is no VM here to ask: /dev/kvm: {error.strerror}", file=sys.stderr)
            return 77
        probe(gmem, vm_fd)
        if arguments.dump:
            dump(gmem, vm_fd)
    except OSError as error:
        print(f"probe.py: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
