# SPDX-License-Identifier: MIT
"""What a VMM that runs in the machine needs to boot Linux once more in there."""

from dataclasses import replace

import archive
import cache
import catalogue
import images
import initramfs

# Debian's kernels have the rest of virtio built in.
MODULES = ["virtio_mmio", "virtio_blk", "virtio_mem", "virtio_balloon"]


def plain(image):
    """IMAGE on a simple processor.

    On QEMU's "max" a kernel inside the kernel finds memory that makes no sense,
    every time: a lock that nobody holds, code that is not there.
    """
    return replace(image, kernel=replace(image.kernel, **catalogue.PLAIN))


def files(image, init, the_archive, say, work):
    """Paths of IMAGE's kernel and, made in WORK, of a file system that starts INIT."""
    modules = images.other_modules(image, MODULES, the_archive, say)
    initrd = initramfs.Initramfs()
    initrd.add("init", init.read_bytes())
    initrd.add("bin/busybox", busybox(image.kernel.arch, the_archive).read_bytes())
    for name in (modules / "modules").read_text().split():
        initrd.add(f"modules/{name}.ko", (modules / f"{name}.ko").read_bytes())
    initrd.write(work / "initrd")
    return [image.path / "vmlinuz", work / "initrd"]


def busybox(arch, the_archive):
    path = cache.root() / "busybox" / arch
    with cache.lock(f"busybox-{arch}"):
        if not path.exists():
            with cache.entry(path) as directory, cache.temporary() as work:
                package = the_archive.download("busybox-static", work, images.DEBIAN_ARCH[arch])
                archive.extract(package, r"/bin/busybox$", directory)
    return path / "busybox"
