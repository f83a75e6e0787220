# SPDX-License-Identifier: MIT
"""Where kernels and builds are kept between runs, safe with two runs at once."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from processes import Problem


def root():
    """$LIBGMEM_CACHE, or libgmem in the user's cache directory."""
    chosen = os.environ.get("LIBGMEM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(chosen) if chosen else Path(base) / "libgmem"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


@contextlib.contextmanager
def lock(name):
    """One process (and one thread of it) at a time; released even by a crash."""
    path = root() / "locks" / name
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def temporary():
    """A directory that is gone afterwards, on the cache's file system."""
    parent = root() / "tmp"
    parent.mkdir(exist_ok=True)
    _sweep(parent)
    path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(parent):
    """Removes what runs that were killed left behind."""
    for path in parent.iterdir():
        pid = path.name.split("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def entry(path):
    """Fills a new cache directory: all of it appears at PATH, or none."""
    with temporary() as work:
        content = work / "entry"
        content.mkdir()
        yield content
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        content.rename(path)


def need_space(gigabytes, what):
    """A Problem unless the cache's file system has room for WHAT."""
    free = shutil.disk_usage(root()).free / 1e9
    if free < gigabytes:
        raise Problem(f"{what} needs {gigabytes} GB free in {root()}, there are {free:.1f}.")
