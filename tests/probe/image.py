#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem-image: what it tells of images, its exit statuses, and what it does with other files.

usage: image.py GMEM-IMAGE GMEM-IMAGE.1
"""
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

from tap import check, equal, run

IMAGE = str(pathlib.Path(sys.argv[1]).resolve())
MANUAL = pathlib.Path(sys.argv[2]).read_text()
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HOST, PRIVATE = 1, 4            # enum gmem_backing
DEVICE, EXTERNAL = 3, 4         # enum gmem_kind


# ---- images, written as gmem-image(5) has them ----

def crc32c(data, crc=0):
    crc = ~crc & 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return ~crc & 0xffffffff


class Writer:
    def __init__(self):
        self.bytes, self.number, self.checksums = b"", 0, 0

    def record(self, kind, entries=(), words=(0, 0, 0), version=0, contents=b""):
        body = b"".join(entries)
        body += b"\0" * (-(64 + len(body)) % 4096) + contents
        def head(checksum):
            return struct.pack("<8sQQIIII3Q", kind, 7, self.number, 64 + len(body), checksum,
                               len(entries), version, *words)
        checksum = crc32c(head(0) + body)
        self.bytes += head(checksum) + body
        self.checksums = crc32c(struct.pack("<I", checksum), self.checksums)
        self.number += 1


def image_of(regions, elsewhere=(), privates=(), blocks=0, lost=(), version=1):
    writer = Writer()
    writer.record(b"GMEMHEAD", words=(4096, len(regions), len(privates)), version=version)
    for entry in regions:
        writer.record(b"GMEMREGN", [struct.pack("<QQI12x", *entry)])
    if elsewhere:
        writer.record(b"GMEMELSE", [struct.pack("<QQQI4x", *entry) for entry in elsewhere])
    if privates:
        writer.record(b"GMEMPRIV", [struct.pack("<QQ", *entry) for entry in privates])
    if blocks:
        writer.record(b"GMEMDATA", [struct.pack("<II", 0, blocks)], contents=b"x" * 4096 * blocks)
    if lost:
        writer.record(b"GMEMLOST", [struct.pack("<QQ", *entry) for entry in lost])
    writer.record(b"GMEM_END", words=(blocks, writer.checksums, 0))
    return writer.bytes


def increment_of(parent, identity, regions, zeros):
    """An image of version 2, all in one record, in which the first pages are zero"""
    def table(kind, entries, base=0, more=0):
        return struct.pack("<8sIIQQ", kind, len(entries), 0, base, more) + b"".join(entries)
    body = struct.pack("<QQQ40x", parent, identity, 0)
    body += table(b"GMEMREGN", [struct.pack("<QQI12x", *region, HOST) for region in regions])
    body += table(b"GMEMDATA", [struct.pack("<II", 0, 1 << 31 | zeros)]) + table(b"GMEM_END", [])
    body += b"\0" * (-(64 + len(body)) % 4096)
    def head(checksum):
        return struct.pack("<8sQQIIII3Q", b"GMEMHEAD", identity, 0, 64 + len(body), checksum, 3, 2, 4096, len(regions), 0)
    return head(crc32c(head(0) + body)) + body


def usual():
    return image_of([(0, 640 * KIB, HOST), (MIB, 3 * GIB, PRIVATE), (4 * GIB, GIB, PRIVATE)],
                    elsewhere=[(3 * GIB + MIB, 16 * MIB, 0, DEVICE), (8 * GIB, GIB, 0x1234, EXTERNAL)],
                    privates=[(2 * MIB, GIB), (4 * GIB, GIB)], blocks=3)


def run_image(*arguments, data=None, text=True):
    """Runs gmem-image on a file with @data, whose name stands for FILE in the arguments."""
    with tempfile.TemporaryDirectory() as directory:
        if data is not None:
            pathlib.Path(directory, "FILE").write_bytes(data)
        return subprocess.run([IMAGE, *arguments], cwd=directory, capture_output=True, check=False,
                              timeout=60, text=text, stdin=subprocess.DEVNULL)


def tell(*arguments, data):
    result = run_image(*arguments, "FILE", data=data)
    equal(result.returncode, 0, "exit status, " + result.stderr)
    equal(result.stderr, "", "standard error")
    return result.stdout


def refused(status, pattern, *arguments, data=None):
    result = run_image(*arguments, data=data)
    equal(result.returncode, status, "exit status, " + result.stderr)
    check(re.search(pattern, result.stderr), result.stderr)
    return result


# ---- what it tells ----

def regions_are_listed_with_what_the_image_has_of_them():
    equal(tell("regions", data=usual()).splitlines(), [
        "           address       size  backing   contents",
        "               0x0    640 KiB  host      in the image",
        "          0x100000      3 GiB  private   in the image, but for 1 GiB that was private",
        "        0xc0100000     16 MiB  -         not in the image: kind device",
        "       0x100000000      1 GiB  private   not in the image: was private",
        "       0x200000000      1 GiB  -         not in the image: kind external, identity 0x1234"],
        "regions")


def info_has_the_sums():
    text = tell("info", data=usual())
    for line in ("image of version 1, identity 0x0000000000000007", "saved on a host with pages of 4 KiB",
                 "4.00 GiB of memory in 3 regions", "2 GiB of it was private to the guest, and is not in the image",
                 "1.02 GiB more in 2 regions of kind device or external, not in the image"):
        check(line + "\n" in text, line, text)


def json_has_it_all():
    told = json.loads(tell("info", "--json", data=usual()))
    equal(told, json.loads(tell("regions", "--json", data=usual())), "both commands")
    equal([told[name] for name in ("schema", "version", "identity", "page_size")], [1, 1, 7, 4096], "head")
    equal([told["memory"], told["private"], told["left_out"]],
          [640 * KIB + 4 * GIB, 2 * GIB, GIB + 16 * MIB], "sums")
    equal(told["regions"][1], {"gpa": MIB, "size": 3 * GIB, "backing": "private", "kind": None,
                               "identity": 0, "private": GIB}, "a region")
    equal(told["regions"][4], {"gpa": 8 * GIB, "size": GIB, "backing": None, "kind": "external",
                               "identity": 0x1234, "private": 0}, "a region that is elsewhere")


def a_whole_image_is_verified():
    text = tell("verify", data=usual())
    check(text.startswith("FILE: the image is whole: 2.00 GiB of memory, 12 KiB of it not zero\n"), text)
    check("2 GiB more was private to the guest" in text and "1.02 GiB more of kind" in text, text)


def an_image_may_begin_anywhere_and_come_through_a_pipe():
    text = tell("regions", "--offset", "0x2000", data=b"state" + b"\0" * 8187 + usual())
    equal(text, tell("regions", data=usual()), "regions")
    for command in ("info", "regions", "verify"):
        result = subprocess.run([IMAGE, command, "-"], input=usual(), capture_output=True, timeout=60, check=False)
        equal(result.returncode, 0, result.stderr.decode())
    check(b"standard input: the image is whole" in result.stdout, result.stdout)


def any_number_of_threads_verifies():
    for workers in ("0", "1", "3", "1024"):
        equal(tell("verify", "--workers", workers, data=usual()), tell("verify", data=usual()), workers)
        refused(1, "not complete", "verify", "--workers", workers, "FILE", data=usual()[:-4096])


def lost_pages_are_named_on_request():
    data = image_of([(0, MIB, HOST)], blocks=1, lost=[(64 * KIB, 8 * KIB)])
    refused(1, "not whole: .* gpa 0x10000, 0x2000 bytes", "verify", "FILE", data=data)
    text = tell("verify", "--allow-lost", data=data)
    check("lost: 0x10000, 8 KiB\n" in text and "8 KiB was lost by the hardware" in text, text)
    many = image_of([(0, MIB, HOST)], lost=[(i * 8 * KIB, 4 * KIB) for i in range(40)])
    text = tell("verify", "--allow-lost", data=many)
    equal(text.count("lost: "), 16, "ranges")
    check("and 24 more ranges\n" in text, text)


# ---- what is no image ----

def damage_behind_the_lists_is_not_noticed_by_info():
    whole = usual()
    data = len(whole) - 4096 - 4 * 4096     # where the record with the memory begins
    equal(whole[data:data + 8], b"GMEMDATA", "the test's own place")
    info, regions = tell("info", data=whole), tell("regions", data=whole)
    for damaged in (whole[:data + 5000] + b"?" + whole[data + 5001:], whole[:data + 100] + b"?" + whole[data + 101:],
                    whole[:data + 4096], whole[:data + 8192], whole[:-4096]):
        equal(tell("info", data=damaged).split("the file has")[0], info.split("the file has")[0], "info")
        equal(tell("regions", data=damaged), regions, "regions")
        equal(run_image("verify", "FILE", data=damaged).returncode, 1, "verify")


def other_files_are_no_images():
    for data in (b"hello\n", b"\0" * 8192, b"\x7fELF" + b"\0" * 100, b"QEVM\0\0\0\3", os.urandom(64).replace(b"G", b"x")):
        for command in ("info", "regions", "verify"):
            result = refused(3, "FILE: this is no image: .* bytes .. .. .. ..", command, "FILE", data=data)
            equal(result.stdout, "", "standard output")
    refused(3, "this is no image: the file is empty", "info", "FILE", data=b"")
    refused(3, "this is a directory, and no image", "verify", ".")
    refused(3, "No such file", "verify", "nothing-of-the-kind")
    refused(3, "the file has 3 bytes, and none at offset 4096", "info", "--offset", "4096", "FILE", data=b"GME")


def what_packed_an_image_is_named():
    for data, program in ((b"\x28\xb5\x2f\xfd" + b"\0" * 9, "zstd"), (b"\x1f\x8b\x08" + b"\0" * 9, "gzip"),
                          (b"\xfd7zXZ\0\0", "xz"), (b"\x04\x22\x4d\x18" + b"\0" * 9, "lz4")):
        refused(3, rf"Try: {program} -dc FILE \| gmem-image verify -\n", "verify", "FILE", data=data)
    refused(3, "looks like a dump. Try: gmem-show FILE", "info", "FILE", data=b'{"gmem_dump":1}')


def commands_to_paste_have_the_name_as_one_word():
    with tempfile.TemporaryDirectory() as directory:
        for name in ("a; touch pwned", "it's", "$(touch pwned)", "two words", "-x", "plain.gz"):
            pathlib.Path(directory, name).write_bytes(b"\x1f\x8b\x08" + b"\0" * 9)
            said = subprocess.run([IMAGE, "info", "--", name], cwd=directory, capture_output=True, check=False,
                                  text=True).stderr
            command = re.search(r"Try: gzip -dc (.*) \| gmem-image info -\n", said)[1]
            words = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], cwd=directory, capture_output=True,
                                   check=True, text=True).stdout
            equal(words, ("./" if name[0] == "-" else "") + name + "\n", "what a shell makes of it")
        check(not pathlib.Path(directory, "pwned").exists(), "a name was run")


def damage_is_no_other_file():
    whole = usual()
    for at in (20, 70, 4100, 9000, len(whole) - 5000):
        refused(1, "damaged: record", "verify", "FILE",
                data=whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    refused(1, "damaged: ", "verify", "FILE", data=whole[4096:])
    for size in (1, 8, 100, 4096, 5000, len(whole) - 4096, len(whole) - 1):
        result = run_image("verify", "FILE", data=whole[:size])
        equal(result.returncode, 1, f"{size} bytes: {result.stderr}")
        check("not complete: " in result.stderr or "damaged: " in result.stderr, result.stderr)


def a_newer_image_is_neither():
    refused(3, "the image is of version 3", "info", "FILE", data=image_of([], version=3))


def what_an_image_only_claims_costs_nothing():
    for words in ((4096, 1 << 63, 0), (4096, 65537, 0), (4096, 0, 1 << 63), (1 << 63, 65536, 1 << 40), (0, 0, 0)):
        writer = Writer()
        writer.record(b"GMEMHEAD", words=words, version=1)
        writer.record(b"GMEM_END", words=(0, writer.checksums, 0))
        for command in ("info", "verify"):
            result = refused(1, "damaged: record", command, "FILE", data=writer.bytes)
            equal(result.stdout, "", "standard output")
    equal(tell("verify", data=image_of([(0, (1 << 64) - 4096, HOST)])),
          "FILE: the image is whole: 16.0 EiB of memory, 0 bytes of it not zero\n", "2^64 bytes")


# ---- the command line ----

def what_images_claim_to_be_zero_is_merged_in_no_time():
    first = increment_of(1, 2, [(0, 1 << 62)], 1 << 30)
    second = increment_of(2, 3, [(0, 1 << 62), (1 << 62, 1 << 62)], 1)
    with tempfile.TemporaryDirectory() as directory:
        paths = [pathlib.Path(directory, name) for name in ("first", "second", "merged")]
        paths[0].write_bytes(first)
        paths[1].write_bytes(second)
        result = run_image("merge", "--output", paths[2], *paths[:2])
        equal(result.returncode, 0, result.stderr)
        check(paths[2].stat().st_size < 64 * MIB, paths[2].stat().st_size)
        equal(run_image("verify", paths[2]).returncode, 0, "verify")
        equal(run_image("diff", "--parent", paths[0], paths[1], paths[2]).returncode, 0, "diff")


def wrong_usage_is_status_2():
    for arguments, pattern in (
            ([], "what is to be done"), (["show"], "no such command"), (["info"], "which file"),
            (["regions", "a", "b"], "one image at a time"), (["diff", "a"], "of two images"), (["merge"], "which file"),
            (["merge", "-"], "read once"), (["diff", "a", "-"], "read once"), (["diff", "--quiet", "--json", "a", "b"], "one of the two"),
            (["info", "--quiet", "a"], "--quiet is for diff"), (["verify", "--parent", "a", "b"], "--parent is for diff"),
            (["diff", "--output", "a", "b", "c"], "--output is for merge"), (["merge", "--json", "a"], "--json is for"),
            (["verify", "--json", "a"], "--json is for"),
            (["info", "--allow-lost", "a"], "--allow-lost is for verify"), (["info", "--offset", "x", "a"], "no number"),
            (["info", "--offset", "-1", "a"], "no number"), (["info", "--offset", "99999999999999999999", "a"], "no number"),
            (["info", "--workers", "2", "a"], "--workers is for verify"),
            (["verify", "--workers", "1025", "a"], "no number of threads up to 1024"), (["verify", "--workers", "-2", "a"], "no number"),
            (["--nothing"], "no such option"), (["-x"], "no such option")):
        refused(2, pattern, *arguments)


def names_do_not_steer_the_terminal():
    result = run_image("info", b"/no\x9b\xc2\x9b\x1b[2J\xe2\x80\xae", text=False)
    check(re.fullmatch(rb"[\n -~]+", result.stderr), result.stderr)


def a_full_disk_is_no_success():
    with open("/dev/full", "w", encoding="ascii") as full, tempfile.NamedTemporaryFile() as file:
        file.write(usual())
        file.flush()
        result = subprocess.run([IMAGE, "info", file.name], stdout=full, stderr=subprocess.PIPE, check=False)
    equal(result.returncode, 3, result.stderr)


def the_manual_has_every_option():
    text = run_image("--help").stdout
    equal(run_image("-h").stdout, text, "-h")
    equal(run_image("-V").stdout, run_image("--version").stdout, "-V")
    options = set(re.findall(r"--([a-z-]+)", text))
    equal(set(re.findall(r"Fl -([a-z-]+)", MANUAL)), options, "options")
    told = json.loads(tell("info", "--json", data=usual()))
    for name in [*told, *told["regions"][0]]:
        check(re.search(rf"^(\.It )?\.?Cm {name}\b|^\.It Cm {name}$", MANUAL, re.M), name)


run([
    regions_are_listed_with_what_the_image_has_of_them,
    info_has_the_sums,
    json_has_it_all,
    a_whole_image_is_verified,
    an_image_may_begin_anywhere_and_come_through_a_pipe,
    any_number_of_threads_verifies,
    lost_pages_are_named_on_request,
    damage_behind_the_lists_is_not_noticed_by_info,
    other_files_are_no_images,
    what_packed_an_image_is_named,
    commands_to_paste_have_the_name_as_one_word,
    damage_is_no_other_file,
    a_newer_image_is_neither,
    what_an_image_only_claims_costs_nothing,
    what_images_claim_to_be_zero_is_merged_in_no_time,
    wrong_usage_is_status_2,
    names_do_not_steer_the_terminal,
    a_full_disk_is_no_success,
    the_manual_has_every_option,
])
