# SPDX-License-Identifier: MIT
"""The emulated machines. QEMU's TCG emulates AMD's SVM with nested paging and
arm64's EL2, so KVM works in them without KVM or special hardware below."""

import os
import select
import subprocess
import time
from dataclasses import dataclass

import processes

MEMORY = 1024  # megabytes, over two NUMA nodes


@dataclass(frozen=True)
class Arch:
    qemu: str
    package: str
    machine: tuple
    processor: str
    console: str
    compiler: str
    compiler_packages: tuple


ARCHES = {
    # With a thread per CPU, x86 kernels before 6.17 often die at random ("Oops: int3"),
    # and once in some sixty boots arm64's KVM finds its own state impossible.
    "x86_64": Arch("qemu-system-x86_64", "qemu-system-x86",
                   ("-accel", "tcg,thread=single"), "max", "ttyS0",
                   "x86_64-linux-gnu-gcc", ("gcc", "libc6-dev")),
    # -cpu max would compute pointer authentication codes in software, slowly.
    "arm64": Arch("qemu-system-aarch64", "qemu-system-arm",
                  ("-accel", "tcg,thread=single",
                   "-M", "virt,virtualization=on,gic-version=3"),
                  "neoverse-n1", "ttyAMA0",
                  "aarch64-linux-gnu-gcc",
                  ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")),
}

# An emulator on a busy machine is no reason to suspect the kernel of stalling.
KERNEL_PARAMETERS = "panic=-1 quiet loglevel=3 rcupdate.rcu_cpu_stall_timeout=120 " \
                    "watchdog_thresh=60"


def _nodes(cpus):
    """Two NUMA nodes with half of the memory and of the CPUs each."""
    arguments = ["-smp", f"{cpus},sockets={min(cpus, 2)}"]
    for node in range(2):
        arguments += ["-object", f"memory-backend-ram,id=m{node},size={MEMORY // 2}M"]
        mine = [cpu for cpu in range(cpus) if cpu * 2 // cpus == node]
        arguments += ["-numa", f"node,nodeid={node},memdev=m{node}"
                      + "".join(f",cpus={cpu}" for cpu in mine)]
    return arguments


def command(image, initramfs, serial="stdio"):
    """The QEMU command that boots IMAGE with INITRAMFS."""
    kernel, arch = image.kernel, ARCHES[image.kernel.arch]
    parameters = [f"console={arch.console}", KERNEL_PARAMETERS, *kernel.parameters]
    return [arch.qemu, *arch.machine, "-cpu", kernel.processor or arch.processor,
            "-m", str(MEMORY), *_nodes(kernel.cpus),
            "-nodefaults", "-display", "none", "-serial", serial,
            "-no-reboot", "-kernel", image.path / "vmlinuz", "-initrd", initramfs,
            "-append", " ".join(parameters)]


class Late(Exception):
    """Nothing was heard from the machine in time."""


class Machine:
    """A running machine, of which one can read the console."""

    def __init__(self, image, initramfs, log=None):
        self._log = log
        self._unread = b""
        self._process = processes.start(
            command(image, initramfs), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        processes.stop(self._process)
        self._process.stdout.close()

    def line(self, deadline):
        """The console's next line, None when the machine is off; may raise Late."""
        while b"\n" not in self._unread:
            more = self._read(deadline)
            if not more:
                rest, self._unread = self._unread, b""
                return _text(rest) if rest else None
            self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        return _text(line)

    def _read(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
            raise Late
        more = os.read(self._process.stdout.fileno(), 65536)
        if self._log:
            self._log.write(more.replace(b"\r", b""))
        return more


def _text(line):
    return line.decode(errors="replace").rstrip("\r")
