# SPDX-License-Identifier: MIT
"""The test programs: built static with meson, or given by the user."""

import hashlib
import json
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

import cache
import processes
import source
from processes import Problem

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
SUITE = "kvm"
NATIVE = {"x86_64": "x86_64", "aarch64": "arm64"}
CROSS_FILE = {"arm64": HERE / "aarch64.ini"}
CROSS_PACKAGES = {"arm64": ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]}

ELF_ARCH = {62: "x86_64", 183: "arm64"}
ELF_NEEDS_LOADER = 3  # PT_INTERP


@dataclass(frozen=True)
class Program:
    name: str
    path: Path
    arch: str
    arguments: tuple = ()


def load(path, arguments=(), name=None):
    """A Program from the file at PATH, which must be static."""
    path = Path(path)
    try:
        arch, static = _inspect(path.read_bytes())
    except OSError as error:
        raise Problem(f"Cannot read {path}: {error.strerror}.") from None
    except (struct.error, KeyError, ValueError):
        raise Problem(f"{path} is no program for x86_64 or arm64.") from None
    if not static:
        raise Problem(f"{path} is not static, and the machines have no libraries.")
    if any(c in "".join(arguments) for c in "\t\n"):
        raise Problem("Arguments cannot contain tabs or newlines.")
    return Program(name or path.name, path, arch, tuple(arguments))


def _inspect(content):
    """(architecture, is it static?) of a 64-bit ELF file."""
    if content[:5] != b"\x7fELF\x02":
        raise ValueError
    machine, = struct.unpack_from("<H", content, 18)
    table, = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    kinds = [struct.unpack_from("<I", content, table + i * size)[0] for i in range(count)]
    return ELF_ARCH[machine], ELF_NEEDS_LOADER not in kinds


def build_directory(arch):
    """Where ARCH's are built; $LIBGMEM_STATIC is a static build for this machine."""
    native = os.environ.get("LIBGMEM_STATIC")
    if native and NATIVE.get(platform.machine()) == arch:
        return Path(native).resolve()
    key = hashlib.sha256(str(TREE).encode()).hexdigest()[:12]
    return cache.root() / "build" / f"{arch}-{key}"


def build(arch):
    """The tree's own test programs for ARCH."""
    if not (TREE / "meson.build").exists():
        raise Problem(f"There is no meson.build in {TREE}; name programs with --program.")
    native = NATIVE.get(platform.machine()) == arch
    if not native and arch not in CROSS_FILE:
        raise Problem(f"Programs for {arch} cannot be built on {platform.machine()}.")
    # Another architecture's programs do without liburing: Debian has no cross package of it.
    source.install(["meson", "ninja-build", "gcc", "libc6-dev"]
                   + (["pkg-config", "liburing-dev"] if native else CROSS_PACKAGES[arch]))
    directory = build_directory(arch)
    with cache.lock(directory.name):
        _configure(directory, [] if native else ["--cross-file", CROSS_FILE[arch]])
        return from_build(directory, compile_them=True)


def _configure(directory, cross):
    if (directory / "build.ninja").exists():
        processes.must("configure the tests", ["ninja", "-C", directory, "build.ninja"])
        return
    directory.mkdir(parents=True, exist_ok=True)
    processes.must("configure the tests", [
        "meson", "setup", *cross, "-Dtests=true", "-Ddefault_library=static", "-Dc_link_args=-static",
        directory, TREE])


def from_build(directory, compile_them=False):
    """The programs of suite "kvm" in a meson build directory."""
    directory = Path(directory).resolve()
    tests = json.loads(processes.must("list the tests", [
        "meson", "introspect", "--tests", directory]))
    commands = {t["name"]: t["cmd"] for t in tests
                if any(s.split(":")[-1] == SUITE for s in t["suite"])}
    if compile_them and commands:
        targets = {str(Path(c[0]).relative_to(directory)) for c in commands.values()}
        processes.must("compile the tests",
                       ["meson", "compile", "-C", directory, *sorted(targets)])
    return [load(command[0], command[1:], _plain(name))
            for name, command in commands.items()]


def _plain(name):
    """A test's name as a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
