#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Will an installed library be found? Prints what a user has to do if not, and nothing if so.

usage: searched.py LIBDIR [SONAME]    without SONAME, no shared library is installed
"""
import os
import re
import shutil
import subprocess
import sys

LIBDIR, SONAME = (sys.argv[1:] + [None])[:2]

# A user's path, and root's after su, may lack them.
os.environ["PATH"] += ":/usr/sbin:/sbin"


def output(*command):
    """What it says, of errors too."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=dict(os.environ, LC_ALL="C"), check=False).stdout


def one_of(directory, directories):
    return os.path.realpath(directory) in map(os.path.realpath, filter(None, directories))


def look_at_loader():
    """It searches the directories that ldconfig reads, and the first file of a name wins."""
    # Of directories that do not exist yet it complains only.
    searched = re.findall(r"^(?:\S*ldconfig: Can't stat )?(/[^:]*):", output("ldconfig", "-v", "-N", "-X"), re.M)
    asked_for = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if searched and not one_of(LIBDIR, searched + asked_for):
        print(f"programs will not find {SONAME}: this system does not search {LIBDIR}.\n"
              f"    export LD_LIBRARY_PATH={LIBDIR}        # or set up with another --libdir")
    known = re.findall(rf"^\t{re.escape(SONAME)} .* => (.*)/[^/]*$", output("ldconfig", "-p"), re.M)
    if known and not one_of(LIBDIR, known[:1]):
        print(f"another {SONAME} is installed, in {known[0]}.")


def look_at_pkg_config():
    searched = output("pkg-config", "--variable=pc_path", "pkg-config").strip()
    searched = f"{os.environ.get('PKG_CONFIG_PATH', '')}:{searched}".split(":")
    if not one_of(f"{LIBDIR}/pkgconfig", searched):
        print(f"pkg-config will not find libgmem: it does not search {LIBDIR}/pkgconfig.\n"
              f"    export PKG_CONFIG_PATH={LIBDIR}/pkgconfig")


if SONAME and shutil.which("ldconfig"):
    look_at_loader()
if shutil.which("pkg-config"):
    look_at_pkg_config()
