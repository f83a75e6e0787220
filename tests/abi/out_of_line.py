#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The functions that gmem.h has inline, called as another language calls them.

usage: out_of_line.py LIBRARY
"""
import ctypes
import errno
import socket
import sys

from tap import equal, run

LIBRARY = ctypes.CDLL(sys.argv[1])
GIB, MIB = 1 << 30, 1 << 20


class Table(ctypes.Structure):
    _fields_ = [("gib_count", ctypes.c_uint64),
                ("gibs", ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)))]


class View(ctypes.Structure):
    _fields_ = [("current", ctypes.POINTER(ctypes.POINTER(Table))),
                ("table", ctypes.POINTER(Table)),
                ("epoch", ctypes.c_uint64),
                ("fence", ctypes.c_uint32),
                ("depth", ctypes.c_uint32)]


for name, result, arguments in (
        ("gmem_view_begin", None, [ctypes.c_void_p]),
        ("gmem_view_end", None, [ctypes.c_void_p]),
        ("gmem_view_free", None, [ctypes.c_void_p]),
        ("gmem_import_free", None, [ctypes.c_void_p]),
        ("gmem_view_hva", ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64,
                                         ctypes.POINTER(ctypes.c_void_p)])):
    function = getattr(LIBRARY, name)
    function.restype, function.argtypes = result, arguments


def find(view, gpa, size):
    hva = ctypes.c_void_p()
    return LIBRARY.gmem_view_hva(view, gpa, size, ctypes.byref(hva)), hva.value


def they_find_the_host_address_that_a_table_has():
    """A table with one entry: the host has the 2 MiB at 4 MiB at 64 GiB"""
    gpa, host = 4 * MIB, 64 * GIB
    entries = (ctypes.c_uint64 * 512)()
    entries[gpa // (2 * MIB)] = host - gpa + 1
    gibs = (ctypes.POINTER(ctypes.c_uint64) * 1)(
        ctypes.cast(entries, ctypes.POINTER(ctypes.c_uint64)))
    current = ctypes.pointer(Table(1, gibs))

    for fence in (0, 1):
        view = View(ctypes.pointer(current), None, 0, fence, 0)
        LIBRARY.gmem_view_begin(ctypes.byref(view))
        equal((view.epoch, view.depth, bool(view.table)), (1, 1, True), "a view that has begun")
        LIBRARY.gmem_view_begin(ctypes.byref(view))
        equal((view.epoch, view.depth), (1, 2), "a view that has begun twice")
        equal(find(ctypes.byref(view), gpa + 0x123, 16), (0, host + 0x123), "the host address")
        LIBRARY.gmem_view_end(ctypes.byref(view))
        LIBRARY.gmem_view_end(ctypes.byref(view))
        equal((view.epoch, view.depth), (2, 0), "a view that has ended")


def they_work_with_a_view_of_the_library():
    """An import that has no memory yet: it needs no KVM."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory, view = ctypes.c_void_p(), ctypes.c_void_p()
    with here, there:
        equal(LIBRARY.gmem_import_new(here.fileno(), None, ctypes.byref(memory)), 0, "an import")
        equal(LIBRARY.gmem_import_view_new(memory, ctypes.byref(view)), 0, "a view")
        LIBRARY.gmem_view_begin(view)
        equal(find(view, 0, 1), (-errno.ENOENT, None), "an address without memory")
        equal(find(view, 0, 0), (-errno.EINVAL, None), "no bytes")
        LIBRARY.gmem_view_end(view)
        LIBRARY.gmem_view_free(view)
        LIBRARY.gmem_import_free(memory)


run([
    they_find_the_host_address_that_a_table_has,
    they_work_with_a_view_of_the_library,
])
