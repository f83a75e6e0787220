#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""examples/rust is tried: its own tests, and those of vm-memory and virtio-queue over it.

usage: rust.py SOURCE LIBRARY [WORK]

The tests of the two crates are those in Debian's packages of their sources. Those of
virtio-queue are compiled as they are, with a vm-memory whose GuestMemoryMmap is memory of
libgmem's (stand_in.rs). Those of vm-memory are part of the crate that they test, so the
functions named below are taken out of it and compiled alone.
WORK is where Cargo builds, and is kept; by default a temporary directory.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, run

HERE = pathlib.Path(__file__).resolve().parent
SOURCE, LIBRARY = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
CRATE = SOURCE / "examples/rust"
REGISTRY = pathlib.Path("/usr/share/cargo/registry")

TEMPORARY = None
if len(sys.argv) > 3:
    WORK = pathlib.Path(sys.argv[3]).resolve()
else:
    TEMPORARY = tempfile.TemporaryDirectory(prefix="libgmem-rust-")
    WORK = pathlib.Path(TEMPORARY.name)

# Tests of what every GuestMemory does, in one version of vm-memory or another. Its other tests
# are of mmap(2) and of bitmaps, or look at private fields.
TESTS = """
    checked_read_from test_non_atomic_access test_zero_length_accesses test_atomic_accesses
    test_address_in_range test_check_address test_to_region_addr test_get_host_address test_deref
    test_read_u64 write_and_read read_to_and_write_from_mem test_access_cross_boundary
    test_guest_memory_mmap_get_slice test_guest_memory_mmap_as_volatile_slice
    test_guest_memory_get_slice test_guest_memory_get_slices test_checked_offset test_check_range
    test_guest_memory_mmap_is_hugetlbfs
""".split()
HELPERS = ["make_image", "loop_timed", "non_atomic_access_helper"]


def crate(name):
    """The directory of the newest version that is installed; None: there is none"""
    found = sorted(REGISTRY.glob(f"{name}-[0-9]*"),
                   key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return found[-1] if found else None


def version(directory):
    return re.search(r"-(\d+\.\d+\.\d+)$", directory.name)[1]


# ---- the Cargo workspace: the crate, the stand-in for vm-memory, the tests of others ----

def write(path, text):
    """Nothing is written that is there: Cargo looks at times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def manifest(name, its_version, rest):
    write(WORK / name / "Cargo.toml",
          f'[package]\nname = "{name}"\nversion = "{its_version}"\nedition = "2021"\n{rest}')


def function(text, name):
    """A function of a module's tests, with its attributes; None: there is none"""
    found = re.search(rf"((?:^    #\[[^\n]*\]\n)*^    (?:pub )?fn {name}\b.*?^    }}\n)", text,
                      re.M | re.S)
    return found and found[1]


def vm_memory_tests(source):
    """The text of a test program, and the names of the tests in it."""
    files = [source / "src/guest_memory.rs", *source.glob("src/mmap.rs"),
             *source.glob("src/mmap/mod.rs")]
    text = "\n".join(path.read_text(encoding="utf-8").partition("#[cfg(test)]\nmod tests {")[2]
                     for path in files)
    tests = [name for name in TESTS if function(text, name)]
    atomic = function((source / "src/bytes.rs").read_text(encoding="utf-8"),
                      "check_atomic_accesses")
    body = "".join(function(text, name) or "" for name in HELPERS + tests)
    body = re.sub(r'^    #\[cfg\(feature = .*\)\]\n', "", body, flags=re.M)
    # Of two traits with the same functions, the tests have one in scope.
    hidden = "struct GuestMemory;" if "GuestMemoryBackend" in text else ""
    return f"""#![allow(warnings)]
use vm_memory::*;
{hidden}
macro_rules! assert_matches {{ ($($what:tt)*) => {{ assert!(matches!($($what)*)) }} }}
mod bytes {{
    pub mod tests {{
        use std::{{fmt::Debug, sync::atomic::Ordering}};
        use vm_memory::*;
    {atomic}
    }}
}}
mod tests {{
    use super::*;
    use std::{{fs::File, io::Cursor, mem, path::Path, time::{{Duration, Instant}}}};
    use vm_memory::bitmap::*;
    type GuestMemoryMmap = crate::GuestMemoryMmap<()>;
{body}
}}
""", tests


def copy_virtio_queue(source):
    for path in source.glob("src/**/*.rs"):
        write(WORK / "virtio-queue" / path.relative_to(source), path.read_text(encoding="utf-8"))
    text = (source / "Cargo.toml").read_text(encoding="utf-8")
    text = re.sub(r"(dependencies\.vm-memory\]\n)", r'\1path = "../vm-memory"\n', text)
    write(WORK / "virtio-queue/README.md", "")
    write(WORK / "virtio-queue/Cargo.toml", text)


def make_workspace():
    real, queue = crate("vm-memory"), crate("virtio-queue")
    minor = int(version(real).split(".")[1])
    shutil.rmtree(WORK / "gmem", ignore_errors=True)
    shutil.copytree(CRATE, WORK / "gmem", ignore=shutil.ignore_patterns("target", "Cargo.lock"))
    write(WORK / ".cargo/config.toml", (CRATE / ".cargo/config.toml").read_text(encoding="utf-8"))

    features = ["iterator"] if minor < 16 else ["backend"] if minor > 17 else []
    manifest("vm-memory", f"0.{minor}.999", f"""
[features]
default = {features}
iterator = []
backend = []
backend-mmap = []
backend-atomic = []

[dependencies]
libc = "0.2"
gmem = {{ path = "../gmem" }}
real = {{ package = "vm-memory", version = "={version(real)}" }}
""")
    write(WORK / "vm-memory/src/lib.rs", (HERE / "stand_in.rs").read_text(encoding="utf-8"))
    manifest("tests", "0.0.0", '[dependencies]\nvm-memory = { path = "../vm-memory" }\n')
    write(WORK / "tests/src/lib.rs", vm_memory_tests(real)[0])

    members = ["gmem", "vm-memory", "tests"]
    if queue:
        members.append("virtio-queue")
        copy_virtio_queue(queue)
    write(WORK / "Cargo.toml", f'[workspace]\nresolver = "2"\nmembers = {members}\n')
    write(WORK / "pkgconfig/libgmem.pc",
          f"includedir={SOURCE}/include\nName: libgmem\nDescription: not installed\nVersion: 0\n"
          f"Cflags: -I${{includedir}}\nLibs: -L{LIBRARY.parent} -lgmem\n")


def command(*words):
    """Run a program in the workspace, with the library that is not installed."""
    environment = dict(os.environ, PKG_CONFIG_PATH=str(WORK / "pkgconfig"),
                       LD_LIBRARY_PATH=str(LIBRARY.parent), CARGO_HOME=str(WORK / "home"),
                       CARGO_TERM_COLOR="never")
    for name in "CARGO_TARGET_DIR", "RUSTFLAGS", "RUST_BACKTRACE", "PKG_CONFIG_SYSROOT_DIR":
        environment.pop(name, None)
    result = subprocess.run(words, cwd=WORK, env=environment, check=False, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    check(result.returncode == 0, *words, "failed:\n", result.stdout[-6000:])
    return result.stdout


def passed(said):
    return sum(int(number) for number in re.findall(r"test result: ok\. (\d+) passed", said))


def need(*programs):
    for program in "cargo", "rustc", "bindgen", "pkg-config", *programs:
        if not shutil.which(program):
            raise Skip(f"{program} is not installed")
    if not crate("vm-memory"):
        raise Skip("librust-vm-memory-dev is not installed")
    make_workspace()


def need_kvm():
    need()
    try:
        open("/dev/kvm", "r+b", buffering=0).close()
    except OSError as error:
        raise Skip(f"guest memory needs /dev/kvm: {error.strerror}") from error


# ---- what is claimed ----

def its_Rust_is_formatted():
    need("rustfmt")
    sources = sorted(str(path) for path in (WORK / "gmem").glob("**/*.rs"))
    command("rustfmt", "--check", "--edition", "2021", "--config-path", "gmem", *sources,
            str(HERE / "stand_in.rs"))


def its_Rust_has_no_lint():
    need("clippy-driver")
    command("cargo", "clippy", "--package", "gmem", "--all-targets", "--", "-D", "warnings")


def it_sees_the_structs_as_C_does():
    need()
    said = command("cargo", "test", "--package", "gmem", "--lib")
    check(passed(said) > 0 or "const _: () = {" in bindings(), said)


def bindings():
    newest = max(WORK.glob("target/debug/build/gmem-*/out/sys.rs"), key=os.path.getmtime)
    return newest.read_text(encoding="utf-8")


def its_own_tests_pass():
    need_kvm()
    said = command("cargo", "test", "--package", "gmem", "--test", "memory")
    check(passed(said) >= 9, said)


def its_documentation_compiles():
    need()
    check(passed(command("cargo", "test", "--package", "gmem", "--doc")) == 2)


def tests_of_vm_memory_pass_over_it():
    need_kvm()
    tests = vm_memory_tests(crate("vm-memory"))[1]
    said = command("cargo", "test", "--package", "tests", "--lib")
    missing = [name for name in tests if f"test tests::{name} ... ok" not in said]
    check(len(tests) >= 14 and not missing, missing, said)


def tests_of_virtio_queue_pass_over_it():
    need_kvm()
    if not crate("virtio-queue"):
        raise Skip("librust-virtio-queue-dev is not installed (Debian 12 has none)")
    check(passed(command("cargo", "test", "--package", "virtio-queue",
                         "--features", "test-utils")) > 30)


run([
    its_Rust_is_formatted,
    its_Rust_has_no_lint,
    it_sees_the_structs_as_C_does,
    its_own_tests_pass,
    its_documentation_compiles,
    tests_of_vm_memory_pass_over_it,
    tests_of_virtio_queue_pass_over_it,
])
