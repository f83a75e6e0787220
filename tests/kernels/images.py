# SPDX-License-Identifier: MIT
"""From a catalogue entry to a directory with a bootable kernel in it.

The directory holds "vmlinuz", the modules KVM needs, and "modules", which
lists these in the order to load them.
"""

import hashlib
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import archive
import cache
import catalogue
import source
from archive import version_key
from processes import Problem

DEBIAN_ARCH = {"x86_64": "amd64", "arm64": "arm64"}

# KVM is built into arm64 kernels. brd gives /dev/ram0, for direct I/O.
MODULES = {"x86_64": ["kvm_amd", "brd"], "arm64": []}
OPTIONAL_MODULES = ["brd"]


class Gone(Exception):
    """The archive does not hold this kernel any more."""


@dataclass(frozen=True)
class Image:
    kernel: catalogue.Kernel
    version: str       # for people
    packages: tuple    # to take it from
    path: Path         # in the cache, whether or not it is there yet

    def cached(self):
        return self.path.exists()

    def modules(self):
        return (self.path / "modules").read_text().split()


# ---- what the archive holds ----

def _versions(packages, kernel):
    """{version: packages} of the bootable kernels of KERNEL's series and flavour."""
    series = r"\d+\.\d+" if kernel.series == "newest" else re.escape(kernel.series)
    name = re.compile(rf"linux-(image|binary)-({series}\..*)-{kernel.flavour}$")
    found = {}
    for match in filter(None, map(name.match, packages)):
        if _is_version(match[2]):
            found.setdefault(match[2], []).append(match[0])
    return {v: chosen for v, names in found.items()
            if (chosen := _bootable(packages, kernel, v, names))}


def _is_version(text):
    """"7.3.4+deb13" is one; "7.3.4+deb13-cloud" is half a flavour too."""
    return not re.search(r"-[a-z]", text)


def _bootable(packages, kernel, version, names):
    """Kernels used to be one package; now image and modules are apart."""
    binary = f"linux-binary-{version}-{kernel.flavour}"
    modules = f"linux-modules-{version}-{kernel.flavour}"
    if binary not in names:
        return tuple(names)
    if not MODULES[kernel.arch]:
        return (binary,)
    return (binary, modules) if modules in packages else None


def _series_of(version):
    return ".".join(version.split(".")[:2])


def _find_debian(packages, kernel):
    versions = _versions(packages, kernel)
    if not versions:
        return _find_cached(packages, kernel)
    version = max(versions, key=version_key)
    chosen = versions[version]
    key = f"linux-{version}-{kernel.flavour}_{packages[chosen[0]]}"
    return Image(catalogue.of_series(kernel, _series_of(version)),
                 f"Debian {version}-{kernel.flavour}", chosen,
                 cache.root() / "kernels" / key)


def _find_cached(packages, kernel):
    """A kernel that has left the archive can still be in the cache."""
    name = re.compile(rf"linux-({re.escape(kernel.series)}\.[^_]*)-{kernel.flavour}_")
    kept = [p for p in (cache.root() / "kernels").glob("linux-*")
            if (match := name.match(p.name)) and _is_version(match[1])]
    if kept:
        path = max(kept, key=lambda p: version_key(p.name))
        return Image(kernel, f"{path.name.split('_')[0]}, kept in the cache", (), path)
    if any(p.startswith(f"linux-binary-{kernel.series}.") for p in packages):
        raise Gone("gone: Debian's archive has lost its modules")
    raise Gone("gone from Debian's archive")


def _find_source(packages, kernel):
    series = r"\d+\.\d+" if kernel.series == "newest" else re.escape(kernel.series)
    names = [p for p in packages if re.fullmatch(f"linux-source-{series}", p)]
    if not names:
        raise Gone("gone: its source has left Debian's archive")
    package = max(names, key=version_key)
    config = hashlib.sha256("\n".join(source.options(kernel)).encode()).hexdigest()[:12]
    key = f"{package}_{packages[package]}_{kernel.arch}_{config}"
    return Image(catalogue.of_series(kernel, package.split("-")[-1]),
                 f"built from Debian's {package} {packages[package]}", (package,),
                 cache.root() / "kernels" / key)


def find(kernel, the_archive):
    """Resolves KERNEL to an Image; raises Gone if there is none."""
    resolve = _find_source if kernel.config else _find_debian
    return resolve(the_archive.packages(), kernel)


def newer_kernels(the_archive):
    """Kernels of the series that the catalogue does not know yet."""
    found = []
    for arch in MODULES:
        known = [version_key(k.series) for k in catalogue.KERNELS
                 if k.arch == arch and k.series != "newest"]
        probe = catalogue.newer(arch, "newest")
        series = {_series_of(v) for v in _versions(the_archive.packages(), probe)}
        found += [catalogue.newer(arch, s) for s in sorted(series, key=version_key)
                  if version_key(s) > max(known)]
    return found


# ---- filling the cache ----

def obtain(image, the_archive, say):
    """Puts IMAGE into the cache unless it is there."""
    with cache.lock(image.path.name):
        if image.cached():
            return
        with cache.entry(image.path) as directory:
            if image.kernel.config:
                source.build(image.kernel, image.packages[0], the_archive, directory, say)
                (directory / "modules").touch()
            else:
                _unpack(image, the_archive, directory, say)


def _unpack(image, the_archive, directory, say):
    cache.need_space(1, "A kernel's package")
    with cache.temporary() as work:
        files = []
        for package in image.packages:
            files.append(the_archive.download(package, work, say=say))
        _take(files, r"/boot/vmlinuz-|/lib/modules/[^/]*/vmlinuz$", work / "image")
        found = next((work / "image").iterdir(), None)
        if found is None:
            raise Problem(f"There is no kernel in {image.packages[0]}.")
        found.rename(directory / "vmlinuz")
        order = _take_modules(files, MODULES[image.kernel.arch], directory)
        (directory / "modules").write_text("".join(f"{m}\n" for m in order))


def other_modules(image, wanted, the_archive, say):
    """A directory with WANTED modules of IMAGE's kernel and those they need.

    "modules" in it lists them in the order to load them.
    """
    key = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]
    path = cache.root() / "modules" / f"{image.path.name}-{key}"
    with cache.lock(path.name):
        if not path.exists():
            if not image.packages or image.kernel.config:
                raise Problem(f"There are no packages with modules of {image.kernel.name}.")
            with cache.entry(path) as directory, cache.temporary() as work:
                files = [the_archive.download(package, work, say=say) for package in image.packages]
                order = _take_modules(files, wanted, directory)
                (directory / "modules").write_text("".join(f"{m}\n" for m in order))
    return path


def _take(files, pattern, directory):
    directory.mkdir(exist_ok=True)
    taken = []
    for file in files:
        taken += archive.extract(file, pattern, directory)
    return taken


def _take_modules(files, wanted, directory):
    """Takes WANTED modules and those they need; returns them in loading order."""
    needs = {}
    missing = set(wanted)
    while missing:
        names = "|".join(re.sub("[-_]", "[-_]", m) for m in sorted(missing))
        taken = _take(files, rf"/({names})\.ko(\.xz)?$", directory)
        for path in map(_decompress, taken):
            needs[_module_name(path.stem)] = _module_needs(path)
        lost = missing - needs.keys() - set(OPTIONAL_MODULES)
        if lost:
            raise Problem(f"The module {min(lost)} is in none of the kernel's packages.")
        missing = {n for list_ in needs.values() for n in list_} - needs.keys()
    return _order(needs)


def _decompress(path):
    if path.suffix == ".xz":
        plain = path.with_suffix("")
        plain.write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
        path = plain
    return path.rename(path.with_name(_module_name(path.stem) + ".ko"))


def _module_name(text):
    return text.replace("-", "_")


def _module_needs(path):
    """The modules that must be loaded before this one, by its own account."""
    match = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
    names = match[1].decode() if match else ""
    return [_module_name(n) for n in names.split(",") if n]


def _order(needs):
    order = []

    def add(name):
        for needed in needs[name]:
            add(needed)
        if name not in order:
            order.append(name)

    for name in needs:
        add(name)
    return order
