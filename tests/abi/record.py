#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The ABI of the shared library against the recorded one, with libabigail.

usage: record.py HEADER RECORDED.abi LIBRARY BUILD_ROOT            test
       record.py --record HEADER RECORDED.abi LIBRARY BUILD_ROOT   record anew

What was added since is no failure; what was removed or changed is. A release
records what it has: docs/releasing.md.
"""
import functools
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

from tap import Skip, check, equal, note, run

RECORD = sys.argv[1] == "--record"
HEADER, RECORDED, LIBRARY, BUILD = (str(pathlib.Path(path).resolve()) for path in sys.argv[-4:])
INCLUDE = str(pathlib.Path(HEADER).parent)
WORK = tempfile.TemporaryDirectory(prefix="libgmem-record-")
RULES = str(pathlib.Path(__file__).resolve().parent / "record.ini")

# Every change counts: the bits of abidiff's exit status
CHANGED, BROKEN = 4, 8


def require():
    for tool in ("abidw", "abidiff"):
        if not shutil.which(tool):
            raise Skip(f"{tool} is missing (abigail-tools)")
    if platform.machine() != "x86_64":
        raise Skip("the ABI is recorded on x86_64")
    sections = subprocess.run(["readelf", "-S", "--wide", LIBRARY], capture_output=True, text=True,
                              check=False).stdout
    if ".debug_info" not in sections:
        raise Skip("the library was built without debug information")


def record(path):
    subprocess.run(["abidw", "--headers-dir", INCLUDE, "--drop-private-types",
                    "--exported-interfaces-only", "--no-corpus-path", "--no-comp-dir-path",
                    "--no-show-locs", "--no-elf-needed", "--type-id-style", "hash",
                    "--no-write-default-sizes", "--out-file", path, LIBRARY], check=True)
    tree = ElementTree.parse(path)
    leave_out_KVM(tree.getroot())
    tree.write(path, encoding="unicode")
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n")


def leave_out_KVM(root):
    """The header only points to KVM's structs: what they hold is the kernel's."""
    for struct in root.iter("class-decl"):
        if struct.get("name").startswith("kvm_"):
            struct[:] = []
            struct.text = None
            struct.attrib.pop("size-in-bits", None)
            struct.set("is-declaration-only", "yes")
    while remove_unused(root):
        pass


def remove_unused(root):
    used = {element.get(key) for element in root.iter() for key in ("type-id", "naming-typedef-id")}
    count = 0
    for parent in root.iter("abi-instr"):
        for child in list(parent):
            if child.get("id") and child.get("id") not in used:
                parent.remove(child)
                count += 1
    return count


def compare(before, after):
    return subprocess.run(["abidiff", "--suppressions", RULES, "--no-added-syms", before, after],
                          capture_output=True, text=True, check=False)


@functools.lru_cache(maxsize=1)
def current():
    require()
    path = f"{WORK.name}/current.abi"
    record(path)
    return path


def nothing_recorded_was_removed_or_changed():
    result = compare(RECORDED, current())
    check(result.returncode == 0, result.stdout, result.stderr, "\nA released ABI must stay. "
          f"If it is meant, and 0.1.0 is not released:\n    meson compile -C {BUILD} record-abi\n"
          f"and commit {RECORDED} with the change.")
    text = pathlib.Path(RECORDED).read_text(encoding="utf-8")
    mapped = re.findall(r"^\s*(gmem_\w+);", (pathlib.Path(HEADER).parent.parent /
                                             "lib/libgmem.map").read_text(encoding="utf-8"), re.M)
    missing = [name for name in mapped if f'"{name}"' not in text]
    note(f"recorded: {len(mapped) - len(missing)} functions; new since: {len(missing)}")


def altered(pattern, replacement):
    """What the comparison says of this library if something else had been recorded"""
    text = pathlib.Path(current()).read_text(encoding="utf-8")
    other, count = re.subn(pattern, replacement, text, count=1, flags=re.S)
    equal(count, 1, f"places of {pattern} there")
    path = pathlib.Path(WORK.name) / "altered.abi"
    path.write_text(other, encoding="utf-8")
    status = compare(str(path), current()).returncode
    check(status < 16, f"abidiff ended with status {status}")
    return status


def a_removed_function_would_be_found():
    symbol = r'(<elf-symbol name=")gmem_vm_new("[^>]*>)'
    check(altered(symbol, r"\1gmem_vm_new\2\n    \1gmem_vm_old\2") & BROKEN, "it is not")


def a_changed_parameter_would_be_found():
    check(altered(r'(<function-decl name="gmem_vm_reserve_slots".*?<parameter type-id=")[^"]*("'
                  r' name="count")', r"\g<1>9c313c2d\2") & CHANGED, "it is not")


def a_moved_member_would_be_found():
    check(altered(r'(<class-decl name="gmem_finding".*?layout-offset-in-bits=")64"',
                  r'\g<1>72"') & CHANGED, "it is not")


def an_option_appended_is_no_change():
    """As if the last member had not been there when this was recorded"""
    status = altered(r'(<class-decl name="gmem_map_opts" size-in-bits=")256(".*?)'
                     r'<data-member access="public" layout-offset-in-bits="192">.*?</data-member>',
                     r"\g<1>192\2")
    equal(status, 0, "status of abidiff")


if RECORD:
    try:
        require()
    except Skip as reason:
        sys.exit(f"The ABI cannot be recorded here: {reason}.")
    record(RECORDED)
    print("recorded in", RECORDED)
else:
    run([
        nothing_recorded_was_removed_or_changed,
        a_removed_function_would_be_found,
        a_changed_parameter_would_be_found,
        a_moved_member_would_be_found,
        an_option_appended_is_no_change,
    ])
