#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The probes in the library are those that gmem.7 has, or none if it was built without.

usage: probes.py yes|no GMEM.7 LIBRARY
"""
import pathlib
import re
import shutil
import subprocess
import sys

from tap import Skip, check, equal, run

WITH_PROBES = sys.argv[1] == "yes"
MANUAL = pathlib.Path(sys.argv[2]).read_text()
LIBRARY = sys.argv[3]


def found():
    """(name, number of arguments) of each probe, from the ELF notes"""
    if not shutil.which("readelf"):
        raise Skip("readelf is missing")
    notes = subprocess.run(["readelf", "--notes", "--wide", LIBRARY], capture_output=True,
                           text=True, check=True).stdout
    probes = re.findall(r"Provider: (\S+)\s+Name: (\S+)\s+Location:.*\s+Arguments: ?(.*)", notes)
    equal(len(probes), notes.count("Provider: "), "probes that were read")
    for provider, name, _ in probes:
        equal(provider, "libgmem", f"provider of {name}")
    return {(name, len(arguments.split())) for _, name, arguments in probes}


def documented():
    section = MANUAL.split(".Sh PROBES")[1].split(".Sh ")[0]
    return {(name, len(arguments.split())) for name, arguments in
            re.findall(r"^\.It Sy (\w+)\n\.Ar ([\w ]+) :$", section, re.M)}


def the_library_has_exactly_the_documented_probes():
    if not WITH_PROBES:
        raise Skip("built without probes")
    check(len(documented()) >= 5, "documented:", documented())
    equal(sorted(found()), sorted(documented()), "probes and their numbers of arguments")


def a_library_without_probes_has_none():
    if WITH_PROBES:
        raise Skip("built with probes")
    equal(found(), set(), "probes")


run([
    the_library_has_exactly_the_documented_probes,
    a_library_without_probes_has_none,
])
