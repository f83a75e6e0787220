#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What is distributed: the tarball alone, twice to the same bytes, and how others use it.

usage: tarball.py SOURCE_ROOT BUILD_ROOT COMPILER...
"""
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

from tap import Skip, check, equal, note, run

SOURCE, BUILD = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
COMPILER = sys.argv[3:]
HERE = pathlib.Path(__file__).resolve().parent
CROSS = SOURCE / "tests/kernels/aarch64.ini"
CONSUMER = SOURCE / "tests/abi/consumer.c"

WORK = tempfile.TemporaryDirectory(prefix="libgmem-tarball-")
TOP = pathlib.Path(WORK.name)

# For what is asked of a build that does not depend on how well it is optimised
QUICK = "-Doptimization=0"


def command(*words, where=TOP, **environment):
    plain = {"CC": " ".join(COMPILER), "CFLAGS": "", "LDFLAGS": "", "DESTDIR": "",
             "SOURCE_DATE_EPOCH": "1700000000"}
    result = subprocess.run([str(word) for word in words], cwd=where, capture_output=True,
                            text=True, env={**os.environ, **plain, **environment}, check=False)
    check(result.returncode == 0, " ".join(map(str, words)), "failed:\n", result.stdout[-4000:],
          result.stderr[-4000:])
    return result.stdout


def need(tool):
    if not shutil.which(tool):
        raise Skip(f"{tool} is missing")
    return tool


@functools.lru_cache(maxsize=1)
def tarball():
    if not (SOURCE / ".git").exists() or not shutil.which("git"):
        raise Skip("this tree is no git work tree: it is the tarball already")
    command("meson", "dist", "-C", BUILD, "--no-tests", "--allow-dirty", "--formats", "xztar")
    return next((BUILD / "meson-dist").glob("libgmem-*.tar.xz"))


@functools.lru_cache(maxsize=None)
def unpacked(name):
    with tarfile.open(tarball()) as archive:
        archive.extractall(TOP / name)
    return next((TOP / name).iterdir())


@functools.lru_cache(maxsize=None)
def installed(name, *options):
    tree = unpacked(name)
    command("meson", "setup", tree / "build", tree, "--prefix=/usr", "--libdir=lib",
            "-Ddefault_library=both", "-Dbuildtype=release", *options)
    command("meson", "compile", "-C", tree / "build")
    root = TOP / f"{name}-root"
    command("meson", "install", "-C", tree / "build", "--no-rebuild", "--quiet", DESTDIR=str(root))
    return root


def files(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()}


def the_tarball_has_what_git_has():
    tree = unpacked("alone")
    listed = command("git", "ls-tree", "-r", "--name-only", "HEAD", where=SOURCE).split("\n")
    missing = [name for name in listed if name and not (tree / name).exists()]
    equal(missing, [], "files that git has and the tarball has not")


def the_tarball_builds_and_passes_alone():
    """As a developer builds it: this one checks the ranks of locks, too"""
    tree = unpacked("alone")
    command("meson", "setup", "--werror", "-Dtests=true", "-Dbuildtype=debug", tree / "tests-build", tree)
    command("meson", "compile", "-C", tree / "tests-build")
    said = command("meson", "test", "-C", tree / "tests-build", "--no-rebuild", "--suite", "unit",
                   "--timeout-multiplier", "10")
    said += command("meson", "test", "-C", tree / "tests-build", "--no-rebuild", "header", "pages",
                    "manual", "gmem-probe", "--timeout-multiplier", "10")
    passed = sum(int(count) for count in re.findall(r"^Ok: +(\d+)", said, re.M))
    note(f"{passed} programs passed")
    check(passed > 20, said)


def two_builds_have_the_same_bytes():
    """In directories of different names and depth"""
    one, other = files(installed("one")), files(installed("elsewhere/another"))
    check("usr/lib/libgmem.a" in one, "installed files are not found:", sorted(one))
    check(any(name.endswith("/gmem_vm_new.3") for name in one), "no manual is installed")
    equal(sorted(one), sorted(other), "names of installed files")
    equal([name for name in one if one[name] != other[name]], [], "files that differ")


def no_path_of_the_build_is_installed():
    for path in sorted(installed("one").rglob("*")):
        if path.is_file() and not path.is_symlink():
            check(WORK.name.encode() not in path.read_bytes(), f"{path.name} has {WORK.name} in it")


def another_architecture_is_built_with_a_cross_file():
    need("aarch64-linux-gnu-gcc")
    # An interpreter for it may be registered; nothing of it is run.
    root = installed("cross", "--cross-file", CROSS, "-Dio_uring=disabled", QUICK)
    header = command("readelf", "-h", root / "usr/lib/libgmem.so")
    check("AArch64" in header, header)
    # <sys/sdt.h> may be there for one of the two alone, and what needs it with it.
    native, cross = ([name for name in sorted(files(tree)) if "/bpftrace/" not in str(name)]
                     for tree in (installed("one"), root))
    equal(native, cross, "names of installed files")


# ---- how others use it ----

def run_consumer(program, **environment):
    version = re.search(r"version: '([\d.]+)'", (SOURCE / "meson.build").read_text())[1]
    equal(command(program, **environment).strip(), version, "what the consumer prints")


def meson_project(directory, dependency):
    directory.mkdir(parents=True)
    shutil.copy(CONSUMER, directory / "vmm.c")
    (directory / "meson.build").write_text(
        f"project('vmm', 'c', default_options: ['werror=true'])\n{dependency}\n"
        "executable('vmm', 'vmm.c', dependencies: gmem)\n")
    (directory / "subprojects").mkdir()


def as_a_meson_subproject():
    project = TOP / "subproject"
    meson_project(project, "gmem = dependency('libgmem', fallback: 'libgmem')")
    shutil.copytree(unpacked("alone"), project / "subprojects/libgmem",
                    ignore=shutil.ignore_patterns("build", "tests-build"))
    command("meson", "setup", project / "build", project, "--wrap-mode=forcefallback",
            QUICK)
    command("meson", "compile", "-C", project / "build", "vmm")
    run_consumer(project / "build/vmm")


def as_a_meson_wrap():
    project = TOP / "wrap"
    meson_project(project, "gmem = dependency('libgmem', default_options: ['default_library=static'])")
    archive = tarball()
    cache = project / "subprojects/packagecache"
    cache.mkdir()
    shutil.copy(archive, cache)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (project / "subprojects/libgmem.wrap").write_text(
        f"[wrap-file]\ndirectory = {archive.name.removesuffix('.tar.xz')}\n"
        f"source_filename = {archive.name}\nsource_hash = {digest}\n"
        "source_url = https://libgmem.invalid/\n\n[provide]\ndependency_names = libgmem\n")
    command("meson", "setup", project / "build", project, "--wrap-mode=forcefallback", QUICK)
    command("meson", "compile", "-C", project / "build", "vmm")
    run_consumer(project / "build/vmm")


def from_CMake_through_pkg_config():
    need("cmake")
    need("pkg-config")
    root, project = installed("one"), TOP / "cmake"
    project.mkdir()
    shutil.copy(CONSUMER, project / "vmm.c")
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(vmm C)\nfind_package(PkgConfig REQUIRED)\n"
        "pkg_check_modules(GMEM REQUIRED IMPORTED_TARGET libgmem)\nadd_executable(vmm vmm.c)\n"
        "target_link_libraries(vmm PRIVATE PkgConfig::GMEM)\n")
    where = {"PKG_CONFIG_PATH": str(root / "usr/lib/pkgconfig"),
             "PKG_CONFIG_SYSROOT_DIR": str(root)}
    command("cmake", "-S", project, "-B", project / "build", **where)
    command("cmake", "--build", project / "build", **where)
    run_consumer(project / "build/vmm", LD_LIBRARY_PATH=str(root / "usr/lib"))


run([
    the_tarball_has_what_git_has,
    the_tarball_builds_and_passes_alone,
    two_builds_have_the_same_bytes,
    no_path_of_the_build_is_installed,
    another_architecture_is_built_with_a_cross_file,
    as_a_meson_subproject,
    as_a_meson_wrap,
    from_CMake_through_pkg_config,
])
