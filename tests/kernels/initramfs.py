# SPDX-License-Identifier: MIT
"""The file system a kernel starts from: PID 1, its plan, modules and programs.

Not compressed: unpacking would take the emulated processor longer than
copying takes the real one.
"""

import hashlib
import os
import stat
from pathlib import Path

import cache
import machine
import processes
import source

HERE = Path(__file__).resolve().parent
# Of our environment, to the programs
PASSED_ON = ["GMEM_STRESS_SECONDS", "GMEM_BENCH_ROWS", "GMEM_BENCH_QUICK"]


class Initramfs:
    """A cpio archive in the "newc" form the kernel reads."""

    def __init__(self):
        self._parts = []
        self._directories = set()

    def _entry(self, name, mode, content=b""):
        encoded = name.encode() + b"\0"
        fields = [len(self._parts) + 1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0,
                  len(encoded), 0]
        head = b"070701" + b"".join(b"%08x" % f for f in fields) + encoded
        self._parts.append(_pad(head) + _pad(content))

    def _directory(self, name):
        if name in ("", ".") or name in self._directories:
            return
        self._directory(str(Path(name).parent))
        self._directories.add(name)
        self._entry(name, stat.S_IFDIR | 0o755)

    def add(self, name, content, mode=0o755):
        """Adds a file, and the directories it is in."""
        self._directory(str(Path(name).parent))
        self._entry(name, stat.S_IFREG | mode, content)

    def add_directory(self, name):
        self._directory(name)

    def write(self, path):
        self._entry("TRAILER!!!", 0)
        path.write_bytes(b"".join(self._parts))


def _pad(data):
    return data + b"\0" * (-len(data) % 4)


def _init(arch):
    """PID 1 for ARCH, compiled when its source has changed."""
    text = (HERE / "init.c").read_bytes()
    path = cache.root() / "init" / f"{arch}-{hashlib.sha256(text).hexdigest()[:12]}"
    with cache.lock(f"init-{arch}"):
        if not path.exists():
            source.install(machine.ARCHES[arch].compiler_packages)
            with cache.entry(path) as directory:
                processes.must("compile init.c", [
                    machine.ARCHES[arch].compiler, "-O2", "-static",
                    "-o", directory / "init", HERE / "init.c"])
    return (path / "init").read_bytes()


def _module_orders(image):
    """Module parameters are given as for a built-in module: kvm_amd.npt=0."""
    given = {"brd": ["rd_nr=1"]}
    for parameter in image.kernel.parameters:
        module, _, setting = parameter.partition(".")
        given.setdefault(module, []).append(setting)
    for module in image.modules():
        yield ["module", f"/m/{module}.ko", " ".join(given.get(module, []))]


def write(path, image, programs, limit, shell=None, extras=()):
    """Makes the initramfs that runs PROGRAMS, or SHELL (a busybox), on IMAGE.

    The files EXTRAS are in its directory /f.
    """
    files = Initramfs()
    files.add("init", _init(image.kernel.arch))
    for directory in ("dev", "proc", "sys", "tmp", "bin"):
        files.add_directory(directory)
    plan = [["env", f"GMEM_TEST_HOST={image.kernel.name}"],
            ["env", "GMEM_TEST_REQUIRE_KVM=1"],
            ["limit", str(limit)]]
    plan += [["env", f"{name}={os.environ[name]}"] for name in PASSED_ON if name in os.environ]

    for module in image.modules():
        files.add(f"m/{module}.ko", (image.path / f"{module}.ko").read_bytes())
    plan += _module_orders(image)

    runs = [["report"]]
    for program in programs:
        files.add(f"t/{program.name}", program.path.read_bytes())
        runs.append(["run", program.name, f"/t/{program.name}", *program.arguments])
    for extra in map(Path, extras):
        files.add(f"f/{extra.name}", extra.read_bytes(), stat.S_IMODE(extra.stat().st_mode))
    if shell:
        files.add("bin/busybox", shell.read_bytes())
    plan += [["shell"]] if shell else runs

    files.add("plan", "".join("\t".join(o) + "\n" for o in plan).encode(), 0o644)
    files.write(path)
