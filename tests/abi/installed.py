#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The installed library: its files, its symbols, its size, and programs built on it.

usage: installed.py SOURCE_ROOT COMPILER...

Builds and installs a tree of its own, shared and static, in a temporary
directory: the options of the build directory this runs from do not matter.
"""
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, note, run

SOURCE = pathlib.Path(sys.argv[1]).resolve()
COMPILER = sys.argv[2:]
HERE = pathlib.Path(__file__).resolve().parent
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
PREFIX = "opt/libgmem"

# What embedders are asked to carry, with dirty tracking and migration
SHARED_LIMIT = 448 * 1024
DATA_LIMIT = 1024

HEADER = (SOURCE / "include/gmem.h").read_text()
VERSION = ".".join(re.search(rf"#define GMEM_VERSION_{part} (\d+)", HEADER).group(1)
                   for part in ("MAJOR", "MINOR", "PATCH"))

WORK = tempfile.TemporaryDirectory(prefix="libgmem-installed-")
ROOT = pathlib.Path(WORK.name) / "root"
TREE = ROOT / PREFIX
SHARED = TREE / f"lib/libgmem.so.{VERSION}"
STATIC = TREE / "lib/libgmem.a"


def command(*words, **environment):
    result = subprocess.run([str(word) for word in words], env={**os.environ, **environment},
                            cwd=WORK.name, capture_output=True, text=True, check=False)
    check(result.returncode == 0, " ".join(map(str, words)), "failed:\n",
          result.stdout[-4000:], result.stderr[-4000:])
    return result.stdout


def tool(*names):
    for name in names:
        if shutil.which(name):
            return name
    raise Skip(f"{' or '.join(names)} is missing")


@functools.lru_cache(maxsize=1)
def install():
    meson = tool("meson")
    tool("ninja", "ninja-build", "samu")
    build = pathlib.Path(WORK.name) / "build"
    plain = {"CC": " ".join(COMPILER), "CFLAGS": "", "LDFLAGS": "", "DESTDIR": ""}
    command(meson, "setup", build, SOURCE, f"--prefix=/{PREFIX}", "--libdir=lib",
            "-Ddefault_library=both", **plain)
    command(meson, "compile", "-C", build)
    command(meson, "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", ROOT)


def section3():
    return command(sys.executable, SOURCE / "docs/man3.py", "--list",
                   SOURCE / "include/gmem.h").split()


def written():
    """Pages by hand; one that meson.build forgets is a file that is missing."""
    return (SOURCE / "docs").glob("*.[1-8]")


def examples():
    """Sources and pages; one that meson.build forgets is a file that is missing."""
    return [path.relative_to(SOURCE) for path in (SOURCE / "examples").rglob("*")
            if path.suffix in (".c", ".h", ".md", ".py", ".rs", ".toml")
            and "target" not in path.parts]


SANDBOX = [f"{architecture}{ending}" for architecture in ("arm64", "x86_64") for ending in (
    ".json", *(f"-{phase}.policy" for phase in (
        "setup", "layout", "running", "convert", "share", "import", "snapshot")))]


def exactly_the_expected_files_are_installed():
    install()
    has_probes = b".note.stapsdt" in SHARED.read_bytes()
    found = sorted(str(path.relative_to(TREE)) for path in TREE.rglob("*") if not path.is_dir())
    equal(found, sorted([
        "bin/gmem-image",
        "bin/gmem-probe",
        "bin/gmem-show",
        "include/gmem-sandbox.h",
        "include/gmem.h",
        "lib/libgmem.a",
        "lib/libgmem.so",
        "lib/libgmem.so.0",
        f"lib/libgmem.so.{VERSION}",
        "lib/pkgconfig/libgmem.pc",
        *(f"share/bash-completion/completions/gmem-{name}" for name in ("image", "probe", "show")),
        "share/zsh/site-functions/_gmem",
        *(f"share/libgmem/bpftrace/{path.stem}" for path in (SOURCE / "lib/tools/bpftrace").glob("*.bt.in")
          if has_probes),
        *(f"share/libgmem/sandbox/{name}" for name in SANDBOX),
        "share/man/man7/gmem-sandbox.7",
        *(f"share/man/man{page.suffix[1:]}/{page.name}" for page in written()),
        *(f"share/man/man3/{name}.3" for name in section3()),
        *(f"share/doc/libgmem/{name}" for name in examples()),
    ]), "installed files")
    outside = [path for path in ROOT.rglob("*") if not path.is_dir() and TREE not in path.parents]
    equal(outside, [], "files outside the prefix")


def symbols(*words):
    lines = command(tool("nm"), "--defined-only", "--format=posix", *words).splitlines()
    rows = [line.split() for line in lines if len(line.split()) >= 2]
    # "A" is the name of a version itself
    return [row[0] for row in rows if row[1] != "A"]


def the_shared_library_exports_what_header_and_map_say():
    install()
    names = symbols("-D", SHARED)
    exported = {name.split("@")[0] for name in names}
    declared = set(re.findall(r"^GMEM_(?:API|INLINE)\s.*?\b(gmem_\w+)\(", HEADER, re.S | re.M))
    mapped = set(re.findall(r"^\s*(gmem_\w+);", (SOURCE / "lib/libgmem.map").read_text(), re.M))

    check(declared, "no declarations found in the header")
    equal(sorted(exported ^ declared), [], "not both exported and declared")
    equal(sorted(exported ^ mapped), [], "not both exported and in the map")
    for name in names:
        check(re.fullmatch(r"gmem_\w+@@LIBGMEM_\d+\.\d+", name), f"{name} has no version")


def the_static_library_defines_nothing_outside_gmem():
    install()
    names = symbols("--extern-only", STATIC)
    check("gmem_version" in names, "symbols are not found:", names)
    # what probes for tracers are counted from, hidden and the same in everybody's objects
    equal([name for name in names if not name.startswith("gmem_") and name != "_.stapsdt.base"], [],
          "foreign symbols")


def the_shared_library_needs_only_the_C_library_and_liburing():
    install()
    dynamic = command(tool("readelf"), "--dynamic", "--wide", SHARED)
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic)
    foreign = [name for name in needed
               if not re.match(r"(libc|libpthread|ld-linux.*|liburing)\.so", name)]
    equal(foreign, [], "libraries it needs")
    check("[libgmem.so.0]" in dynamic, "its soname is not libgmem.so.0")
    check("TEXTREL" not in dynamic, "it has text relocations")


def the_stripped_shared_library_is_small():
    install()
    stripped = pathlib.Path(WORK.name) / "stripped.so"
    command(tool("strip"), "--strip-unneeded", "-o", stripped, SHARED)
    size = stripped.stat().st_size
    note(f"stripped shared library: {size} bytes, the limit is {SHARED_LIMIT}")
    check(size < SHARED_LIMIT, f"{size} bytes")


def the_shared_library_has_little_static_data():
    install()
    sections = {row[0]: int(row[1]) for row in
                re.findall(r"^(\.\S+)\s+(\d+)", command(tool("size"), "-A", SHARED), re.M)}
    wanted = {name: sections.get(name, 0) for name in (".data", ".bss", ".tdata", ".tbss")}
    note(", ".join(f"{name} {size}" for name, size in wanted.items()))
    size = wanted[".data"] + wanted[".bss"]
    check(size < DATA_LIMIT, f".data and .bss have {size} bytes, the limit is {DATA_LIMIT}")


def pkg_config(*words):
    program = tool("pkg-config", "pkgconf")
    system = command(program, "--variable=pc_path", "pkg-config").strip()  # liburing's is there
    return command(program, *words, "libgmem",
                   PKG_CONFIG_LIBDIR=f"{TREE}/lib/pkgconfig:{system}", PKG_CONFIG_PATH="",
                   PKG_CONFIG_SYSROOT_DIR=str(ROOT)).split()


def consume(compiler, source, standard, *how):
    install()
    program = pathlib.Path(WORK.name) / "consumer"
    link_static = "-static" in how
    flags = pkg_config("--cflags", "--libs", *(["--static"] if link_static else []))
    command(*compiler, f"-std={standard}", *WARNINGS, HERE / source, "-o", program, *flags, *how)
    environment = {} if link_static else {"LD_LIBRARY_PATH": str(TREE / "lib")}
    equal(command(program, **environment).strip(), VERSION, "what the consumer prints")


def pkg_config_knows_the_version():
    install()
    equal(pkg_config("--modversion"), [VERSION], "version")


def a_C_program_builds_on_the_shared_library():
    consume(COMPILER, "consumer.c", "c99")


def a_C_program_builds_on_the_static_library():
    consume(COMPILER, "consumer.c", "c99", "-static")


def a_Cxx_program_builds_on_the_shared_library():
    consume([tool("g++", "clang++")], "consumer.cc", "c++11")


def a_Cxx_program_builds_on_the_static_library():
    consume([tool("g++", "clang++")], "consumer.cc", "c++11", "-static")


def the_installed_probe_runs():
    install()
    said = command(TREE / "bin/gmem-probe", "--version", LD_LIBRARY_PATH=str(TREE / "lib"))
    equal(said.strip(), f"gmem-probe {VERSION}", "what it says")


run([
    exactly_the_expected_files_are_installed,
    the_shared_library_exports_what_header_and_map_say,
    the_static_library_defines_nothing_outside_gmem,
    the_shared_library_needs_only_the_C_library_and_liburing,
    the_stripped_shared_library_is_small,
    the_shared_library_has_little_static_data,
    pkg_config_knows_the_version,
    a_C_program_builds_on_the_shared_library,
    a_C_program_builds_on_the_static_library,
    a_Cxx_program_builds_on_the_shared_library,
    a_Cxx_program_builds_on_the_static_library,
    the_installed_probe_runs,
])
