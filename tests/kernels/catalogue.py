# SPDX-License-Identifier: MIT
"""The kernels we test on. To add one, add a line to KERNELS.

A series is resolved to the newest version of it that Debian's archive holds
today, "newest" to the newest series. Series newer than those listed here are
found by themselves and belong to the full matrix too.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Kernel:
    name: str               # on the command line, and in $GMEM_TEST_HOST
    arch: str               # "x86_64" or "arm64"
    about: str              # what it stands for
    series: str             # "6.18", or "newest"
    flavour: str = ""       # Debian's name for how it was configured
    config: tuple = ()      # our own build instead: the files in config/ it is made of
    cpus: int = 2
    processor: str = ""     # QEMU's -cpu, if not the architecture's usual one
    parameters: tuple = ()  # for the kernel's command line
    time_factor: int = 1       # the time limits are multiplied by this


def debian(name, about, flavour="", **options):
    """A kernel as Debian built it, NAME being ARCH-SERIES or ARCH-SERIES-FLAVOUR."""
    arch, series, *_ = name.split("-")
    flavour = flavour or {"x86_64": "cloud-amd64", "arm64": "cloud-arm64"}[arch]
    return Kernel(name, arch, about, series, flavour, **options)


def built(name, about, *config, series="newest", **options):
    """A small kernel built from Debian's source of SERIES."""
    arch = name.split("-")[0]
    return Kernel(name, arch, about, series, config=("common", arch, *config), **options)


# On the emulated processor "max", one boot in six of x86 kernels of the 6.12 kind
# dies with memory that makes no sense; as an EPYC on one CPU, none of 28 did.
PLAIN = {"processor": "EPYC,check=off", "cpus": 1}

KERNELS = [
    debian("x86_64-6.1", "before guest_memfd", **PLAIN),
    debian("x86_64-6.12", "guest_memfd not compiled in", **PLAIN),
    debian("x86_64-6.17", "guest_memfd not compiled in, the last such"),
    debian("x86_64-6.17-amd64", "guest_memfd can be created but not bound", "amd64"),
    debian("x86_64-6.18", "the first with guest_memfd that the host can map"),
    debian("x86_64-6.19", "guest_memfd obeys mbind"),
    debian("x86_64-7.0", "as 6.19"),
    debian("x86_64-7.1", "as 6.19"),
    debian("x86_64-7.2", "binding twice is EEXIST"),
    debian("x86_64-7.3", "as 7.2"),
    debian("x86_64-newest", "whatever is newest today"),

    built("x86_64-private", "private memory (KVM_X86_SW_PROTECTED_VM)"),
    built("x86_64-private-npt0", "shadow paging: KVM emulates more, no private memory",
          parameters=("kvm_amd.npt=0",)),
    built("x86_64-private-1cpu", "private memory on one CPU", cpus=1),
    built("x86_64-private-4cpu", "private memory on four CPUs", cpus=4),
    built("x86_64-private-debug", "private memory with the kernel's own checkers on",
          "debug", time_factor=4),
    built("x86_64-private-6.12", "private memory as it was before 6.18", series="6.12",
          **PLAIN),

    debian("arm64-6.12", "guest_memfd not compiled in"),
    debian("arm64-6.17", "guest_memfd not compiled in, the last such"),
    debian("arm64-6.18", "the first with guest_memfd on arm64"),
    debian("arm64-6.19", "guest_memfd obeys mbind"),
    debian("arm64-7.0", "as 6.19"),
    debian("arm64-7.1", "as 6.19"),
    debian("arm64-7.2", "binding twice is EEXIST"),
    debian("arm64-7.3", "as 7.2"),
    debian("arm64-newest", "whatever is newest today"),
    debian("arm64-newest-16k", "16K pages", "arm64-16k"),
    built("arm64-newest-64k", "64K pages", "arm64-64k"),
]

DEFAULT = ["x86_64-newest", "x86_64-private", "arm64-newest-16k"]


def of_series(kernel, series):
    """KERNEL with "newest" replaced by what it turned out to be."""
    name = kernel.name.replace("newest", series)
    same = next((k for k in KERNELS if k.name == name), kernel)
    return replace(kernel, series=series, name=name, about=same.about)


def newer(arch, series):
    """A kernel of a series that came out after this list was written."""
    return debian(f"{arch}-{series}", "newer than the catalogue")
