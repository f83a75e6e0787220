#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table of gmem-sandbox(7) against the sources, and what is made of it against the table.

usage: sandbox.py DOCS/SANDBOX.PY TABLE BUILT-DOCS COMPILER... -- SYS.C RING.C SOURCE.C...
"""
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, run

spec = importlib.util.spec_from_file_location("made", sys.argv[1])
made = importlib.util.module_from_spec(spec)
sys.modules["made"] = made
spec.loader.exec_module(made)

TABLE = made.read_table(sys.argv[2])
BUILT = pathlib.Path(sys.argv[3])
SEPARATOR = sys.argv.index("--")
COMPILER = sys.argv[4:SEPARATOR]
SOURCES = [pathlib.Path(path).read_text(encoding="utf-8") for path in sys.argv[SEPARATOR + 1:]]
LIBRARY = pathlib.Path(sys.argv[SEPARATOR + 1]).parent.parent
COMBINATIONS = [(a, p) for a in made.ARCHITECTURES for p in made.PHASES]

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
    "pthread_create": ["clone", "clone3", "exit", "mmap", "mprotect", "rseq", "set_robust_list"],
    "pthread_join": ["futex"], "pthread_sigmask": ["rt_sigprocmask"], "pwrite": ["pwrite64"], "raise": ["tgkill", "gettid"],
    "read": ["read"], "sem_post": ["futex"], "sem_wait": ["futex"], "readlink": ["readlink", "readlinkat"], "sched_yield": ["sched_yield"],
    "sigaction": ["rt_sigaction"], "sigpending": ["rt_sigpending"],
    "sigtimedwait": ["rt_sigtimedwait"], "timerfd_create": ["timerfd_create"],
    "timerfd_settime": ["timerfd_settime"], "write": ["write"],
}
# Functions that stay in the process
PURE = {"snprintf", "memset", "memcpy", "memcmp", "strlen", "calloc", "malloc", "free", "getpagesize", "sem_init",
        "sigemptyset", "sigaddset", "sigismember", "io_uring_get_sqe", "io_uring_prep_read",
        "io_uring_prep_write", "io_uring_prep_fsync", "io_uring_prep_poll_add",
        "io_uring_prep_cancel64", "io_uring_prep_cancel",
        "io_uring_sqe_set_data64", "io_uring_cqe_get_data64", "io_uring_cqe_seen",
        "io_uring_sq_ready", "io_uring_sq_space_left", "io_uring_cq_ready", "major", "minor", "makedev",
        "CMSG_DATA", "FUTEX_OP", "CMSG_FIRSTHDR", "CMSG_LEN", "CMSG_NXTHDR", "CMSG_SPACE",
        "S_ISREG", "S_ISBLK", "S_ISDIR", "S_ISCHR", "S_ISFIFO", "S_ISSOCK"}
WORDS = {"if", "while", "for", "switch", "return", "sizeof", "defined"}


def called(source):
    text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", "", source, flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    names = set(re.findall(r"\b([A-Za-z_]\w*)\(", text)) - WORDS - {"syscall"}
    defined = set(re.findall(r"^(?:static )?[\w ]+?[ *](\w+)\([^;]*?\)\n\{", text, re.S | re.M))
    return {name for name in names - defined if not name.startswith("gmem_")}, \
        set(re.findall(r"\b__NR_(\w+)", text))


def every_function_of_the_ground_floor_is_known():
    functions = set().union(*(called(source)[0] for source in SOURCES[:2]))
    check(len(functions) > 20, "calls of sys.c are not found:", functions)
    equal(sorted(functions - set(CALLS) - PURE), [],
          "functions that this test does not know: say which system call they make, above")


def every_system_call_is_in_the_table():
    functions = set().union(*(called(source)[0] for source in SOURCES[:2]))
    numbers = set().union(*(called(source)[1] for source in SOURCES[:2]))
    check(len(TABLE.calls) > 30, "the table is not found")
    wanted = numbers | {call for name in functions & set(CALLS) for call in CALLS[name]}
    equal(sorted(wanted - {row.name for row in TABLE.calls}), [], "calls that are not in the table")


def every_request_is_in_the_table():
    used = set()
    for source in SOURCES:
        text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", "", source, flags=re.S)
        used |= set(re.findall(r"ioctl\(\s*[^,]*,\s*(KVM_\w+)", text))
    check(len(used) > 4, "requests of the sources are not found:", used)
    equal(sorted(used - {row.name for row in TABLE.requests}), [], "requests that are not in the table")


def the_table_is_in_order_and_says_nothing_twice():
    for rows in (TABLE.calls, TABLE.requests):
        names = [row.name for row in rows]
        equal(names, sorted(set(names)), "names")
    with_requests = {phase for row in TABLE.requests for phase in row.phases}
    equal(set(next(row for row in TABLE.calls if row.name == "ioctl").phases), with_requests,
          "the phases of ioctl")


def the_numbers_are_those_of_the_kernel():
    lines = ["#include <stdint.h>", "#include <linux/fs.h>", "#include \"os/kvm_compat.h\"",
             "#include <sys/syscall.h>", "#if defined(__x86_64__)", "#define x86_64 1", "#define arm64 0",
             "#else", "#define x86_64 0", "#define arm64 1", "#endif"]
    for row in TABLE.requests:
        # <linux/kvm.h> has the structs of its own architecture only.
        there = " || ".join(row.architectures)
        lines += [f"#if ({there}) && defined({row.name})",
                  f"_Static_assert((uint32_t){row.name} == {row.number:#x}, \"{row.name}\");", "#endif"]
    for name, number in made.NEW.items():
        lines += [f"#ifdef __NR_{name}", f"_Static_assert(__NR_{name} == {number}, \"{name}\");", "#endif"]
    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory, "numbers.c")
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = subprocess.run([*COMPILER, "-std=gnu11", f"-I{LIBRARY}", "-c", "-o", source.with_suffix(".o"), source],
                              capture_output=True, text=True, check=False)
    equal(done.returncode, 0, done.stderr)


def each_architecture_has_the_calls_of_its_rows():
    if not shutil.which("scmp_sys_resolver"):
        raise Skip("no scmp_sys_resolver here (Debian: seccomp)")
    for architecture, word in {"x86_64": "x86_64", "arm64": "aarch64"}.items():
        for row in TABLE.calls:
            if row.name in made.NEW:
                continue
            number = int(subprocess.run(["scmp_sys_resolver", "-a", word, row.name], capture_output=True,
                                        text=True, check=True).stdout)
            equal(number >= 0, architecture in row.architectures, f"{row.name} is a call of {architecture}")


def read_policy(text):
    """minijail0(5), as far as our files go: {call: set of requests, or None for any}"""
    found = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+): (1|arg1 == 0x[0-9a-f]+(?: \|\| arg1 == 0x[0-9a-f]+)*)", line)
        check(match, f"no line of a policy: {line}")
        check(match[1] not in found, f"twice: {match[1]}")
        found[match[1]] = None if match[2] == "1" else \
            {int(number, 16) for number in re.findall(r"0x[0-9a-f]+", match[2])}
    return found


def expected(architecture, phase):
    calls = {row.name: None for row in made.chosen(TABLE.calls, architecture, phase)}
    if "ioctl" in calls:
        calls["ioctl"] = {row.number for row in made.chosen(TABLE.requests, architecture, phase)}
    return calls


def the_policies_say_what_the_table_says():
    for architecture, phase in COMBINATIONS:
        text = (BUILT / f"{architecture}-{phase}.policy").read_text(encoding="utf-8")
        equal(read_policy(text), expected(architecture, phase), f"{architecture}-{phase}.policy")


def the_manual_adds_up_policies():
    """with a command that it has, and as minijail reads them: each call once"""
    page = (BUILT / "gmem-sandbox.7").read_text(encoding="utf-8")
    command = re.search(r"^\.Bd -literal\n(awk .*?)\n\.Ed$", page, re.S | re.M)
    check(command, "no awk in the manual")
    own = "# mine\nexit_group: 1\nwrite: 1\nioctl: arg1 == 0xae80\n"
    with tempfile.TemporaryDirectory() as directory:
        for phase in ("running", "convert"):
            shutil.copy(BUILT / f"x86_64-{phase}.policy", directory)
        pathlib.Path(directory, "mine.policy").write_text(own, encoding="utf-8")
        text = command[1].replace("\\e", "\\")
        done = subprocess.run(["sh", "-c", text], cwd=directory, capture_output=True, text=True, check=True)
        added = done.stdout or pathlib.Path(directory, "vmm.policy").read_text(encoding="utf-8")
    wanted = {**expected("x86_64", "running"), **expected("x86_64", "convert"), "exit_group": None, "write": None}
    wanted["ioctl"] = {0xae80} | expected("x86_64", "running")["ioctl"] | expected("x86_64", "convert")["ioctl"]
    equal(read_policy(added), wanted, "the sum")


def the_filters_of_seccompiler_say_what_the_table_says():
    for architecture in made.ARCHITECTURES:
        text = json.loads((BUILT / f"{architecture}.json").read_text(encoding="utf-8"))
        equal(list(text), list(made.PHASES), f"{architecture}.json")
        for phase, one in text.items():
            found = {}
            equal([one["default_action"], one["filter_action"]], ["kill_process", "allow"], "actions")
            for rule in one["filter"]:
                check(set(rule) <= {"syscall", "args", "comment"}, rule)
                if "args" not in rule:
                    check(rule["syscall"] not in found, f"twice: {rule}")
                    found[rule["syscall"]] = None
                    continue
                [condition] = rule["args"]
                equal([condition[key] for key in ("index", "type", "op")], [1, "dword", "eq"], rule)
                found.setdefault(rule["syscall"], set()).add(condition["val"])
            equal(found, expected(architecture, phase), f"{architecture}.json, {phase}")


def the_header_compiles_alone_in_c_and_cxx():
    for language, standard, macro in (("c", "c99", "-D_GNU_SOURCE"), ("c", "c99", "-U_GNU_SOURCE"),
                                      ("c", "c11", "-U_GNU_SOURCE"), ("c", "gnu11", "-U_GNU_SOURCE"),
                                      ("c++", "c++11", "-D_GNU_SOURCE")):
        text = "#include <gmem-sandbox.h>\nint main(void) { return gmem_sandbox_enter(0, 0, 0); }\n"
        done = subprocess.run([*COMPILER, "-x", language, f"-std={standard}", macro, "-Wall", "-Wextra",
                               "-Werror", "-Wpadded", "-pedantic", f"-I{BUILT}", "-fsyntax-only", "-"],
                              input=text, capture_output=True, text=True, check=False)
        if done.returncode and "cc1plus" in done.stderr:
            continue
        equal(done.returncode, 0, f"{standard} {macro}: {done.stderr}")


run([
    every_function_of_the_ground_floor_is_known,
    every_system_call_is_in_the_table,
    every_request_is_in_the_table,
    the_table_is_in_order_and_says_nothing_twice,
    the_numbers_are_those_of_the_kernel,
    each_architecture_has_the_calls_of_its_rows,
    the_policies_say_what_the_table_says,
    the_manual_adds_up_policies,
    the_filters_of_seccompiler_say_what_the_table_says,
    the_header_compiles_alone_in_c_and_cxx,
])
