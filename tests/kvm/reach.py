#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is each row of docs/sandbox.table, in each of its phases, a call that a test makes?

usage: reach.py DOCS/SANDBOX.PY TABLE PROGRAM...

Runs the programs under strace. They tell by the name of their process when they enter a
phase. A row that they do not reach there must be excused below, with the reason.
"""
import collections
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, note, run

spec = importlib.util.spec_from_file_location("made", sys.argv[1])
made = importlib.util.module_from_spec(spec)
sys.modules["made"] = made
spec.loader.exec_module(made)

TABLE = made.read_table(sys.argv[2])
PROGRAMS = sys.argv[3:]
ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}[os.uname().machine]

MEMORY = "the C library's memory: it depends on sizes, and on how many threads ask"
LIBRARIES = "other C libraries, or other architectures, use this one of two calls"
SIGNALS = "a signal comes, or a fault, in the middle of this phase"
WAITING = "only what is in use at that moment is waited for"
THREADS = "strace does not tell in time whose thread begins"
PRIVATE = "private memory, which this host has not; reached in emulated kernels"
ADOPTED = "a file of the program's is adopted"
LIMITS = "a limit is reached"
LARGE = "256 pages or more are looked at, or counted, at once"
OLD = "older kernels"
TRACKED = "a peer comes while there is a tracker"

# Why no test reaches a row here, in phases where none does
EXCUSED = {
    "brk": MEMORY, "getrandom": MEMORY, "madvise": MEMORY, "mmap": MEMORY, "mprotect": MEMORY, "mremap": MEMORY,
    "munmap": MEMORY, "sched_getaffinity": MEMORY,
    "clock_gettime": "the kernel tells the time without a call", "clock_nanosleep": WAITING, "nanosleep": LIBRARIES,
    "sched_yield": WAITING, "futex": WAITING, "membarrier": WAITING, "timerfd_settime": WAITING,
    "clone": LIBRARIES, "fstat": LIBRARIES, "ppoll": LIBRARIES, "readlinkat": LIBRARIES,
    "exit": THREADS, "rseq": THREADS, "set_robust_list": THREADS, "sched_setaffinity": "the host has one node",
    "get_mempolicy": "the host has one node", "cachestat": PRIVATE, "fcntl": PRIVATE, "fstatfs": PRIVATE,
    "KVM_SET_MEMORY_ATTRIBUTES": PRIVATE, "KVM_CLEAR_DIRTY_LOG": "VMs whose dirty logs are protected manually",
    "KVM_PRE_FAULT_MEMORY": "a vCPU is populated for", "KVM_RESET_DIRTY_RINGS": "VMs with dirty rings",
    "fallocate": "a page of zeros among dense data that is still in the page cache", "msync": LARGE, "PAGEMAP_SCAN": LARGE, "kcmp": OLD, "readlink": ADOPTED, "newfstatat": ADOPTED, "pread64": "memory registered with userfaultfd",
    "ftruncate": TRACKED, "memfd_create": TRACKED,
    "preadv2": "a file on a disk, that is read past the page cache", "poll": "a pipe is full, or empty",
    "openat": LIMITS, "prlimit64": LIMITS, "read": LIMITS,
    "getpid": "access without recovery", "process_vm_readv": "access without recovery",
    "gettid": SIGNALS, "restart_syscall": SIGNALS, "rt_sigaction": SIGNALS, "rt_sigprocmask": SIGNALS,
    "rt_sigreturn": SIGNALS, "rt_sigtimedwait": "the reader of a pipe is gone", "rt_tgsigqueueinfo": SIGNALS,
    "tgkill": SIGNALS, "write": "a message waits for room", "accept4": "a reader of dumps comes",
}


def trace(program, reached):
    """Adds {phase: {call, or (ioctl, request)}}"""
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        done = subprocess.run(["strace", "-f", "-X", "raw", "-o", log, program], env=os.environ | {"GMEM_TEST_SHORT": "1"},
                              capture_output=True, text=True, check=False)
        if done.returncode == 77 or done.stdout.startswith("1..0"):
            raise Skip(done.stdout.split("\n")[0])
        equal(done.returncode, 0, f"{program}:\n{done.stdout}")
        with open(log, encoding="utf-8", errors="replace") as lines:
            read_log(lines, reached)


def read_log(lines, reached):
    process, named, phase = {}, {}, {}
    for line in lines:
        match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)", line)
        if not match:
            continue
        thread, call, rest = match.groups()
        owner = process.setdefault(thread, thread)
        if "resumed>" not in line and phase.get(owner) and call != "exit_group":
            reached[phase[owner]].add(call)
            if call == "ioctl":
                reached[phase[owner]].add(int(rest.split(", ")[1], 16))
        if call in ("clone", "clone3") and (born := re.search(r" = (\d+)$", line)):
            # A thread of this process, or a process of its own
            flags = re.search(r"flags=(0x[0-9a-f]+)", line)
            is_thread = flags and int(flags[1], 16) & 0x10000
            process[born[1]] = owner if is_thread else born[1]
        if call == "prctl" and (name := re.match(r'0xf[^"]*"(\w+)"', rest)):
            named[owner] = name[1]
        if call == "seccomp" and re.search(r" = 0$", line):
            phase[owner] = named.get(owner)


def every_row_is_reached_or_excused():
    if not shutil.which("strace"):
        raise Skip("no strace here")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 18):
        raise Skip("this kernel has not all that the library uses")
    reached = collections.defaultdict(set)
    for program in PROGRAMS:
        trace(program, reached)
    check(set(made.PHASES) - {"convert"} <= set(reached), "phases:", sorted(reached, key=str))
    missed = [(row.name, phase) for row in TABLE.calls + TABLE.requests for phase in row.phases
              if ARCHITECTURE in row.architectures and row.name not in reached[phase]
              and row.number not in reached[phase]]
    for name in sorted({name for name, _ in missed} & set(EXCUSED)):
        note(f"{name} in {' '.join(phase for other, phase in missed if other == name)}: {EXCUSED[name]}")
    equal([f"{name} in {phase}" for name, phase in missed if name not in EXCUSED], [],
          "rows that no test reaches")
    equal(sorted(set(EXCUSED) - {row.name for row in TABLE.calls + TABLE.requests}), [], "excuses of no row")


run([every_row_is_reached_or_excused])
