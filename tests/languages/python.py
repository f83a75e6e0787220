#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""examples/python is tried, and compared with gmem.h.

usage: python.py SOURCE LIBRARY
"""
import ctypes
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

from tap import Skip, check, equal, run

SOURCE, LIBRARY = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
PROGRAM = SOURCE / "examples/python/probe.py"
HEADER = re.sub(r"/\*.*?\*/", "", (SOURCE / "include/gmem.h").read_text(encoding="utf-8"),
                flags=re.S)
ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH=str(LIBRARY.parent))

SPEC = importlib.util.spec_from_file_location("probe", PROGRAM)
PROBE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(PROBE)

NUMBERS = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32,
           "uint64_t": ctypes.c_uint64, "void": None}


def program(*words, stdin=None):
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, input=stdin,
                            env=ENVIRONMENT, check=False)
    return result.returncode, result.stdout, result.stderr


def of_c(declaration):
    """What ctypes calls the type of a parameter, a member or a result"""
    found = re.match(r"(?:GMEM_CHECKED\s+|const\s+)*((?:struct\s+)?\w+)\s*(\**)",
                     declaration.strip())
    kind, stars = found[1], len(found[2])
    if stars == 0:
        return NUMBERS[kind]
    if kind == "char":
        return ctypes.c_char_p
    if kind == "struct gmem_finding":
        return ctypes.POINTER(PROBE.Finding)
    return ctypes.c_void_p if stars == 1 else ctypes.POINTER(ctypes.c_void_p)


def it_has_the_prototypes_of_the_header():
    for name, (result, parameters) in PROBE.PROTOTYPES.items():
        found = re.search(rf"GMEM_API\s+([\w\s]*?[\s*]){name}\(([^)]*)\);", HEADER)
        check(found, name, "is not in gmem.h")
        wanted = [] if found[2] == "void" else [of_c(part) for part in found[2].split(",")]
        equal(parameters, wanted, f"parameters of {name}()")
        equal(result, of_c(found[1]), f"result of {name}()")


def it_has_the_structs_of_the_header():
    body = re.search(r"struct gmem_finding \{(.*?)\};", HEADER, re.S)[1]
    members = [member.strip() for member in body.split(";") if member.strip()]
    wanted = [(re.search(r"\w+$", member)[0], of_c(member)) for member in members]
    equal(PROBE.Finding._fields_, wanted, "members of struct gmem_finding")


def it_is_for_the_version_of_the_header():
    version = [re.search(rf"GMEM_VERSION_{part} (\d+)", HEADER)[1] for part in ("MAJOR", "MINOR")]
    equal(PROBE.VERSION, ".".join(version), "version")


def it_prints_a_line_for_each_capability():
    status, out, said = program(PROGRAM, "--dump")
    if status == 77:
        raise Skip(said.strip())
    equal(status, 0, said)
    lines = len(re.findall(r"^\tGMEM_CAP_(?!COUNT)\w+", HEADER, re.M))
    report, brace, dump = out.partition("{")
    equal(len(report.splitlines()), lines, "lines of the report")
    check(brace and '"size":67108864' in dump, out)


def without_KVM_it_says_so():
    status, out, said = program("-", "--dump", stdin=f"""
import os, sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
import probe
def no_kvm(*_):
    raise FileNotFoundError(2, "No such file or directory")
probe.os.open = no_kvm
sys.exit(probe.main())
""")
    equal(status, 77, said)
    check(out.count("\n") > 20, out)
    equal(said, "There is no VM here to ask: /dev/kvm: No such file or directory\n", "what it says")


def an_error_is_an_exception_with_the_sentence():
    status, _, said = program("-", stdin=f"""
import sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
import probe
probe.load().gmem_vm_new(-1, None, None)
""")
    equal(status, 1, "status")
    check(re.search(r"OSError: \[Errno 22\] .*\bret\b.* NULL", said), said)


def it_has_help_and_refuses_what_it_does_not_know():
    status, out, _ = program(PROGRAM, "--help")
    equal((status, "--dump" in out), (0, True), "--help")
    for wrong in "--dmup", "x", "-v":
        status, out, said = program(PROGRAM, wrong)
        equal((status, out), (2, ""), wrong)
        check(wrong in said, said)


def it_has_no_lint():
    for tool in ["pyflakes3"], ["mypy", "--strict", f"--cache-dir={os.devnull}"]:
        if not shutil.which(tool[0]):
            raise Skip(f"{tool[0]} is not installed")
        result = subprocess.run([*tool, PROGRAM], capture_output=True, text=True, check=False)
        check(result.returncode == 0, *tool, "says:\n", result.stdout + result.stderr)


run([
    it_has_the_prototypes_of_the_header,
    it_has_the_structs_of_the_header,
    it_is_for_the_version_of_the_header,
    it_prints_a_line_for_each_capability,
    without_KVM_it_says_so,
    an_error_is_an_exception_with_the_sentence,
    it_has_help_and_refuses_what_it_does_not_know,
    it_has_no_lint,
])
