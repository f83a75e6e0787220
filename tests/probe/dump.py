#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The format of dumps: what gmem-dump(5) says is what gmem_vm_dump() writes.

usage: dump.py SAMPLE DESCRIBE GMEM-DUMP.5
"""
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from tap import Skip, check, equal, run

SAMPLE, DESCRIBE = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:3])
MANUAL = pathlib.Path(sys.argv[3]).read_text()

NONE = type(None)
NUMBER, NUMBER_OR_NULL = (int,), (int, NONE)

DUMP = {"gmem_dump": NUMBER, "library": (str,), "name": (str, NONE), "architecture": (str,),
        "page_size": NUMBER, "address_bits": NUMBER_OR_NULL, "memslots": NUMBER,
        "address_space": NUMBER,
        "regions": (list,), "stuck": (list,), "leases": (list,)}
REGION = {"gpa": NUMBER, "size": NUMBER, "backing": (str,), "slot": NUMBER_OR_NULL,
          "kind": (str, NONE), "identity": NUMBER, "lost": (bool,), "readonly": (bool,), "dirty_log": (bool,), "file": (dict, NONE),
          "hva": NUMBER_OR_NULL, "ranges": (list,)}
RANGE = {"gpa": NUMBER, "size": NUMBER, "private": NUMBER_OR_NULL,
         "shared_resident": NUMBER_OR_NULL, "private_resident": NUMBER_OR_NULL, "nodes": (list,)}
NODE = {"node": NUMBER, "pages": NUMBER}
LEASE = {"gpa": NUMBER, "size": NUMBER, "holder": (str,)}
FILE = {"fd": NUMBER, "size": NUMBER, "offset": NUMBER, "create_flags": NUMBER}

SAMPLES = [("6.1", "host"), ("6.18", "mapped"), ("6.18", "shared"), ("7.3-swp-t1", "private"),
           ("arm64-7.3-16k", "shared"), ("arm64-7.3-64k", "shared")]


@functools.lru_cache(maxsize=None)
def sample(kernel, backing):
    result = subprocess.run([SAMPLE, kernel, backing], capture_output=True, check=True, timeout=60)
    return json.loads(result.stdout.decode("utf-8"))


def has_members(thing, what, members):
    check(type(thing) is dict, f"{what} is {thing!r}")
    equal(list(thing), list(members), f"members of {what}")
    for name, types in members.items():
        # To Python, a boolean is an integer too.
        check(type(thing[name]) in types, f"{what}, {name} is {thing[name]!r}")
        check(type(thing[name]) is not int or 0 <= thing[name] < 1 << 64, f"{what}, {name}")


def well_formed(dump):
    has_members(dump, "the dump", DUMP)
    equal(dump["gmem_dump"], 1, "format")
    check(dump["architecture"] in ("x86_64", "arm64"), dump["architecture"])
    for region in dump["regions"] + dump["stuck"]:
        has_members(region, "a region", REGION)
        for name in ("gpa", "size"):
            equal(region[name] % dump["page_size"], 0, f"{name} of {region} by the page")
        equal(region["slot"] is None, region["backing"] == "device", f"{region} has no slot")
        if region["file"]:
            has_members(region["file"], "a file", FILE)
    for lease in dump["leases"]:
        has_members(lease, "a lease", LEASE)
    end = 0
    for region in dump["regions"]:
        check(region["gpa"] >= end and region["size"] > 0, "order of regions", region)
        end = region["gpa"] + region["size"]
        ranges_are_well_formed(region, dump["page_size"])


def ranges_are_well_formed(region, page):
    end = region["gpa"]
    for part in region["ranges"]:
        has_members(part, "a range", RANGE)
        equal(part["gpa"], end, "start of a range")
        check(part["size"] > 0, "size of a range", part)
        end += part["size"]
        for name in ("private", "shared_resident", "private_resident"):
            check(part[name] is None or part[name] <= part["size"], part)
            check(part[name] is None or part[name] % page == 0, part)
        for node in part["nodes"]:
            has_members(node, "a node", NODE)
            check(0 < node["pages"] <= part["size"] // page, part)
    equal(region["kind"] is None, region["backing"] == "device", f"{region} has no kind")
    if region["kind"] in (None, "device", "external"):
        equal(region["ranges"], [], "ranges of a device")
    else:
        equal(end, region["gpa"] + region["size"], "end of the ranges")


def every_dump_is_well_formed():
    for arguments in SAMPLES:
        well_formed(sample(*arguments))


def dumps_tell_ways_of_backing_and_files():
    for kernel, backing in SAMPLES:
        regions = sample(kernel, backing)["regions"]
        equal([region["backing"] for region in regions], [backing, "host", "device", backing],
              "ways of backing")
        for region in regions:
            equal(region["file"] is not None, region["backing"] not in ("host", "device"),
                  f"{region} has a file")


def leases_have_their_holders():
    for arguments in SAMPLES:
        equal([lease["holder"] for lease in sample(*arguments)["leases"]], ["disk \"0\""], "holders")


def the_name_comes_through():
    name = sample("6.18", "shared")["name"]
    equal(name, "sample \"\\\n\x1b[31m gr\u00fc\u00df\ufffd", "name")


def a_real_machine_s_dump_is_well_formed():
    result = subprocess.run([DESCRIBE], capture_output=True, check=False, timeout=60)
    if result.returncode == 77:
        raise Skip(result.stderr.decode().strip())
    equal(result.returncode, 0, "exit status, " + result.stderr.decode())
    dump = json.loads(result.stdout)
    well_formed(dump)
    equal(dump["name"], "describe", "name")
    equal(len(dump["regions"]), 4, "regions")
    equal(dump["stuck"], [], "stuck memslots")


def a_real_machine_is_served_to_who_connects():
    with tempfile.TemporaryDirectory() as directory:
        path = directory + "/vm.sock"
        program = subprocess.Popen([DESCRIBE, "--serve", path], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 30
        while not os.path.exists(path) and program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if program.poll() == 77:
            raise Skip(program.communicate()[0].decode().strip().splitlines()[0])
        used = []
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as reader:
                reader.connect(path)
                dump = json.loads(b"".join(iter(lambda: reader.recv(65536), b"")))
            well_formed(dump)
            used.append(sum(part["shared_resident"] or 0 for region in dump["regions"] for part in region["ranges"]))
            time.sleep(0.3)
        check(used[0] < used[2], f"the guest's memory does not grow: {used}")
        program.send_signal(signal.SIGINT)
        equal(program.communicate(timeout=30)[1], b"", "standard error")
        equal(program.returncode, 0, "exit status")
        check(not os.path.exists(path), "the socket is left behind")


def the_manual_has_every_member():
    documented = set(re.findall(r"^\.It Cm (\w+)", MANUAL, re.M))
    equal(sorted(documented), sorted({*DUMP, *REGION, *RANGE, *FILE}), "members in the manual")


def the_example_in_the_manual_is_well_formed():
    example = re.search(r"^\.Bd -literal.*?\n(.*?)^\.Ed", MANUAL.split(".Sh EXAMPLES")[1],
                        re.S | re.M).group(1)
    well_formed(json.loads(example))


run([
    every_dump_is_well_formed,
    dumps_tell_ways_of_backing_and_files,
    leases_have_their_holders,
    the_name_comes_through,
    a_real_machine_s_dump_is_well_formed,
    a_real_machine_is_served_to_who_connects,
    the_manual_has_every_member,
    the_example_in_the_manual_is_well_formed,
])
