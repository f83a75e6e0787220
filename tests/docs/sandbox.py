#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tables of gmem-sandbox(7): for the test that enforces them, and against the sources.

usage: sandbox.py --header GMEM-SANDBOX.7             C, for tests/kvm/sandbox.c
       sandbox.py GMEM-SANDBOX.7 SYS.C SOURCE.C...    test
"""
import pathlib
import re
import sys

PHASES = ("setup", "layout", "running", "convert", "share", "snapshot")

# The system call behind each function of the C library that the ground floor calls
CALLS = {
    "clock_gettime": ["clock_gettime"], "close": ["close"], "fallocate": ["fallocate"],
    "epoll_create1": ["epoll_create1"], "epoll_ctl": ["epoll_ctl"], "eventfd": ["eventfd2"],
    "eventfd_read": ["read"], "eventfd_write": ["write"], "getsockopt": ["getsockopt"], "accept4": ["accept4"],
    "recvmsg": ["recvmsg"], "sendmsg": ["sendmsg"], "shutdown": ["shutdown"],
    "fcntl": ["fcntl"], "fdatasync": ["fdatasync"], "fstat": ["fstat", "newfstatat"],
    "fstatfs": ["fstatfs"], "ftruncate": ["ftruncate"], "memfd_create": ["memfd_create"],
    "getpid": ["getpid"], "getrandom": ["getrandom"],
    "io_uring_queue_init": ["io_uring_setup", "mmap"], "io_uring_queue_exit": ["munmap", "close"],
    "io_uring_submit": ["io_uring_enter"], "io_uring_wait_cqe": ["io_uring_enter"],
    "io_uring_peek_cqe": ["io_uring_enter"], "io_uring_sqring_wait": ["io_uring_enter"],
    "ioctl": ["ioctl"], "lseek": ["lseek"], "madvise": ["madvise"], "mincore": ["mincore"],
    "mmap": ["mmap"], "msync": ["msync"], "mprotect": ["mprotect"], "munmap": ["munmap"],
    "nanosleep": ["nanosleep", "clock_nanosleep"], "open": ["openat"],
    "poll": ["poll", "ppoll"], "pread": ["pread64"], "process_vm_readv": ["process_vm_readv"],
    "pthread_sigmask": ["rt_sigprocmask"], "pwrite": ["pwrite64"], "raise": ["tgkill", "gettid"],
    "read": ["read"], "readlink": ["readlink", "readlinkat"], "sched_yield": ["sched_yield"],
    "sigaction": ["rt_sigaction"], "sigpending": ["rt_sigpending"],
    "sigtimedwait": ["rt_sigtimedwait"], "timerfd_create": ["timerfd_create"],
    "timerfd_settime": ["timerfd_settime"], "write": ["write"],
}
# Functions that stay in the process
PURE = {"snprintf", "memset", "memcpy", "memcmp", "strlen", "calloc", "malloc", "free", "getpagesize",
        "sigemptyset", "sigaddset", "sigismember", "io_uring_get_sqe", "io_uring_prep_read",
        "io_uring_prep_write", "io_uring_prep_fsync", "io_uring_prep_poll_add",
        "io_uring_prep_cancel64", "io_uring_prep_cancel",
        "io_uring_sqe_set_data64", "io_uring_cqe_get_data64", "io_uring_cqe_seen",
        "io_uring_sq_ready", "io_uring_sq_space_left", "io_uring_cq_ready", "major", "minor", "makedev",
        "CMSG_DATA", "FUTEX_OP", "CMSG_FIRSTHDR", "CMSG_LEN", "CMSG_NXTHDR", "CMSG_SPACE",
        "S_ISREG", "S_ISBLK", "S_ISDIR", "S_ISCHR", "S_ISFIFO", "S_ISSOCK"}
WORDS = {"if", "while", "for", "switch", "return", "sizeof", "defined"}


def rows(page, macro):
    """name -> phases, of the rows that begin with this macro"""
    found = {}
    for name, phases in re.findall(rf"^\.It {macro} (\w+) Ta ([a-z ]+) Ta\b", page, re.M):
        found[name] = list(PHASES) if phases == "all" else phases.split()
    return found


def header(page):
    print("/* Generated from gmem-sandbox.7; do not edit. */")
    for number, phase in enumerate(PHASES):
        print(f"#define PHASE_{phase.upper()} (1u << {number})")
    print("static const struct entry calls[] = {")
    for name, phases in rows(page, "Cm").items():
        mask = sum(1 << PHASES.index(phase) for phase in phases)
        print(f"#ifdef __NR_{name}\n\t{{ __NR_{name}, {mask}u }},\n#endif")
    print("};\nstatic const struct entry requests[] = {")
    for name, phases in rows(page, "Dv").items():
        mask = sum(1 << PHASES.index(phase) for phase in phases)
        there = "defined(__aarch64__)" if name.startswith("KVM_ARM_") else f"defined({name})"
        print(f"#if {there}\n\t{{ (uint32_t){name}, {mask}u }},\n#endif")
    print("};")


def called(source):
    text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", "", source, flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    names = set(re.findall(r"\b([A-Za-z_]\w*)\(", text)) - WORDS - {"syscall"}
    defined = set(re.findall(r"^(?:static )?[\w ]+?[ *](\w+)\([^;]*?\)\n\{", text, re.S | re.M))
    return {name for name in names - defined if not name.startswith("gmem_")}, \
        set(re.findall(r"\b__NR_(\w+)", text))


def test():
    from tap import check, equal, run
    page = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    ground = [pathlib.Path(path).read_text(encoding="utf-8") for path in sys.argv[2:4]]
    sources = [pathlib.Path(path).read_text(encoding="utf-8") for path in sys.argv[2:]]
    functions, numbers = set(), set()
    for source in ground:
        functions |= called(source)[0]
        numbers |= called(source)[1]

    def every_function_of_the_ground_floor_is_known():
        check(len(functions) > 20, "calls of sys.c are not found:", functions)
        equal(sorted(functions - set(CALLS) - PURE), [],
              "functions that this test does not know: say which system call they make, above")

    def every_system_call_is_in_the_table():
        table = rows(page, "Cm")
        check(len(table) > 30, "the table is not found")
        wanted = numbers | {call for name in functions & set(CALLS) for call in CALLS[name]}
        equal(sorted(wanted - set(table)), [], "calls that are not in gmem-sandbox.7")

    def every_request_is_in_the_table():
        used = set()
        for source in sources:
            text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", "", source, flags=re.S)
            used |= set(re.findall(r"ioctl\(\s*[^,]*,\s*(KVM_\w+)", text))
        check(len(used) > 4, "requests of the sources are not found:", used)
        equal(sorted(used - set(rows(page, "Dv"))), [], "requests that are not in gmem-sandbox.7")

    def every_row_has_known_phases_in_order():
        lines = re.findall(r"^\.It (?:Cm|Dv) \w+ Ta .*$", page, re.M)
        table = {**rows(page, "Cm"), **rows(page, "Dv")}
        equal(len(table), len(lines), "rows that could be read")
        for name, phases in table.items():
            check(set(phases) <= set(PHASES), f"{name}: phases {phases}")

    run([
        every_function_of_the_ground_floor_is_known,
        every_system_call_is_in_the_table,
        every_request_is_in_the_table,
        every_row_has_known_phases_in_order,
    ])


if sys.argv[1] == "--header":
    header(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
else:
    test()
