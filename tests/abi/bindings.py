#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What other languages see of gmem.h when a program reads it: with bindgen, for Rust.

usage: bindings.py HEADER MAP
"""
import functools
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, run

HEADER, MAP = (pathlib.Path(path) for path in sys.argv[1:3])
TEXT = HEADER.read_text(encoding="utf-8")
WORK = tempfile.TemporaryDirectory(prefix="libgmem-bindings-")


def command(*words):
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                            cwd=WORK.name, check=False)
    check(result.returncode == 0, " ".join(map(str, words)), "failed:\n", result.stderr[-4000:])
    return result.stdout


@functools.lru_cache(maxsize=1)
def bindings():
    if not shutil.which("bindgen"):
        raise Skip("bindgen is missing")
    return command("bindgen", "--allowlist-function", "gmem_.*", "--allowlist-type", "gmem_.*",
                   "--allowlist-var", "GMEM_.*", HEADER, "--", "-DGMEM_INLINE=GMEM_API")


def every_exported_function_is_seen():
    exported = re.findall(r"^\s*(gmem_\w+);", MAP.read_text(encoding="utf-8"), re.M)
    seen = re.findall(r"\bpub fn (gmem_\w+)\(", bindings())
    equal(sorted(set(exported) - set(seen)), [], "functions it does not see")


def every_struct_and_enum_is_seen():
    declared = re.findall(r"^(?:struct|enum) (gmem_\w+) \{", TEXT, re.M)
    seen = re.findall(r"\bpub (?:struct|type|enum) (gmem_\w+)", bindings())
    equal(sorted(set(declared) - set(seen)), [], "types it does not see")


def every_constant_is_seen():
    """A cast, or a macro in the value, hides it: write (1ull << 3), not (uint64_t)1 << 3"""
    declared = re.findall(r"^#define (GMEM_\w+)[ \t]+\(?[-(\d]", TEXT, re.M)
    seen = re.findall(r"\bpub const (GMEM_\w+):", bindings())
    check(len(declared) > 30, "constants of the header are not found")
    equal(sorted(set(declared) - set(seen)), [],
          "constants it does not see; it reads (1ull << 3), but no cast")


def Rust_lays_out_every_struct_alike():
    rust = bindings()
    if not shutil.which("rustc"):
        raise Skip("rustc is missing")
    source = pathlib.Path(WORK.name) / "bindings.rs"
    source.write_text("#![allow(warnings)]\n" + rust, encoding="utf-8")
    command("rustc", "--test", "--edition", "2018", source, "-o", "layout", "-C", "debuginfo=0")
    said = command("./layout")
    passed = re.search(r"(\d+) passed; 0 failed", said)
    check(passed and int(passed[1]) > 5, "layout tests:", said)


run([
    every_exported_function_is_seen,
    every_struct_and_enum_is_seen,
    every_constant_is_seen,
    Rust_lays_out_every_struct_alike,
])
