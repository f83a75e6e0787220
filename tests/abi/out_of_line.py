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
    _fields_ = [("count", ctypes.c_uint64),
                ("entries", ctypes.c_uint64 * 2)]


class Newest(ctypes.Structure):
    _fields_ = [("table", ctypes.POINTER(Table)),
                ("period", ctypes.c_uint64)]


class View(ctypes.Structure):
    _fields_ = [("newest", ctypes.POINTER(Newest)),
                ("table", ctypes.POINTER(Table)),
                ("period", ctypes.c_uint64),
                ("depth", ctypes.c_uint64)]


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
    """The host has a GiB at 8 GiB, the 2 MiB at 4 MiB at 64 GiB, and 64 KiB in the next 2 MiB"""
    slices, granules = (ctypes.c_uint64 * 32)(), (ctypes.c_uint64 * 512)()
    granules[2] = 64 * GIB - 4 * MIB + 1
    granules[3] = ctypes.addressof(slices) + 2
    slices[5] = 96 * GIB + 1
    table = Table(2, (ctypes.addressof(granules) + 2, 7 * GIB + 1))

    for period in (2, 3):
        newest = Newest(ctypes.pointer(table), period)
        view = View(ctypes.pointer(newest), None, 0, 0)
        LIBRARY.gmem_view_begin(ctypes.byref(view))
        equal((view.period, view.depth, bool(view.table)), (period, 0, True),
              "a view that has begun")
        LIBRARY.gmem_view_begin(ctypes.byref(view))
        equal((view.period, view.depth), (period, 1), "a view that has begun twice")
        for gpa, host in ((GIB + 0x12345, 8 * GIB + 0x12345), (4 * MIB + 0x123, 64 * GIB + 0x123),
                          (6 * MIB + 0x50123, 96 * GIB + 6 * MIB + 0x50123)):
            equal(find(ctypes.byref(view), gpa, 16), (0, host), "the host address")
        LIBRARY.gmem_view_end(ctypes.byref(view))
        equal((view.period, view.depth), (period, 0), "a view that has ended once")
        LIBRARY.gmem_view_end(ctypes.byref(view))
        equal((view.period, view.depth, bool(view.table)), (0, 0, False), "a view that has ended")


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
