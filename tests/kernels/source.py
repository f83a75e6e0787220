# SPDX-License-Identifier: MIT
"""Small kernels built from Debian's kernel source.

Everything is built in and nothing else is: a few minutes once, then a kernel
that boots in seconds. The unpacked source, over a gigabyte, is not kept.
"""

import os
import subprocess
import sys
from pathlib import Path

import cache
import processes
from processes import Problem

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "x86_64": ["gcc", "libc6-dev"],
    "arm64": ["gcc-aarch64-linux-gnu", "gcc", "libc6-dev"],
}
TOOLS = ["make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils", "cpio"]
TARGET = {"x86_64": "bzImage", "arm64": "Image"}
MAKE = {
    "x86_64": ["ARCH=x86_64", "CROSS_COMPILE=x86_64-linux-gnu-"],
    "arm64": ["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"],
}
BOOT = {"x86_64": "arch/x86/boot/bzImage", "arm64": "arch/arm64/boot/Image"}


def options(kernel):
    """The options KERNEL is made of, as NAME=value; a ? in front if it may lack them."""
    found = []
    for name in kernel.config:
        for line in (HERE / "config" / name).read_text().splitlines():
            option = line.split("#")[0].strip()
            if not option:
                continue
            mark = "?" if option.endswith("?") else ""
            option = option.rstrip("?")
            found.append(mark + (option if "=" in option else f"{option}=y"))
    return found


def build(kernel, package, archive, directory, say):
    """Leaves "vmlinuz" and its "config" in DIRECTORY."""
    cache.need_space(5, "Building a kernel")
    install(TOOLS + PACKAGES[kernel.arch])
    with cache.temporary() as work:
        file = archive.download(package, work, say=say)
        with processes.telling(say, "unpacking it"):
            tree = _unpack(file, work)
        make = ["make", "-s", "-C", tree, f"O={work / 'out'}", *MAKE[kernel.arch],
                "KBUILD_BUILD_USER=libgmem", "KBUILD_BUILD_HOST=libgmem"]
        _configure(kernel, make, work)
        with processes.telling(say, f"building {package} with config/"
                               f"{' config/'.join(kernel.config)}, which takes minutes, once"):
            processes.must("build the kernel",
                           [*make, f"-j{os.cpu_count()}", TARGET[kernel.arch]])
        (work / "out" / BOOT[kernel.arch]).rename(directory / "vmlinuz")
        (work / "out" / ".config").rename(directory / "config")


def install(packages):
    """Installs the Debian packages that are missing, saying so."""
    process = processes.start([HERE.parent / "packages", *dict.fromkeys(packages)],
                              stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        status = process.wait()
    finally:
        processes.stop(process)
    if status:
        raise Problem(f"This machine needs {' '.join(packages)}.")


def _unpack(package_file, work):
    processes.must("unpack the kernel's source", [
        "sh", "-c", 'dpkg-deb --fsys-tarfile "$0" | tar -x -C "$1" --wildcards "*.tar.xz" && '
        'rm "$0" && tar -x -C "$1" -f "$1"/usr/src/*.tar.xz && rm -r "$1/usr"',
        package_file, work])
    return next(p for p in work.iterdir() if (p / "Kconfig").exists())


def _configure(kernel, make, work):
    wanted = options(kernel)
    (work / "out").mkdir()
    fragment = work / "fragment"
    fragment.write_text("".join(f"CONFIG_{o.lstrip('?')}\n" for o in wanted))
    processes.must("configure the kernel",
                   [*make, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"])
    taken = set((work / "out" / ".config").read_text().splitlines())
    refused = [o for o in wanted if not o.startswith("?") and f"CONFIG_{o}" not in taken]
    if refused:
        raise Problem(f"{kernel.name}: the kernel's configuration did not take "
                      + ", ".join(refused) + ".")
