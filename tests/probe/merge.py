#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem-image merge, diff and info of chains, on images that the library made of a VM that changes.

usage: merge.py GMEM-IMAGE IMAGES

IMAGES is the program of images.c: 0.img, 1.img and so on are a chain, sequence.img has as many
in one file, and 0.raw and so on are what the memory was.
"""
import atexit
import functools
import itertools
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tap import Skip, check, equal, run

IMAGE, IMAGES = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:3])
COUNT = 8
BLOCK = 4096
HERE = pathlib.Path(tempfile.mkdtemp(prefix="gmem-merge."))
atexit.register(shutil.rmtree, HERE, ignore_errors=True)


@functools.cache
def make():
    """The directory with the images, and how it was made"""
    directory = HERE / "made"
    directory.mkdir()
    return directory, subprocess.run([IMAGES, "make", directory, str(COUNT)], capture_output=True, text=True,
                                     check=False)


def made():
    """The directory with the images, made once"""
    directory, result = make()
    if result.returncode == 77:
        raise Skip(result.stderr.strip())
    equal(result.returncode, 0, result.stderr)
    return directory


def chain(*numbers):
    return [str(made() / f"{number}.img") for number in numbers]


def tool(*arguments, **more):
    return subprocess.run([IMAGE, *arguments], capture_output=True, check=False, timeout=120, **more)


def fresh(name="new.img"):
    """The name of a file that is not there, in a directory of its own"""
    return pathlib.Path(tempfile.mkdtemp(dir=HERE)) / name


def merged(*files):
    path = fresh()
    result = tool("merge", "--output", path, *files)
    equal(result.returncode, 0, result.stderr)
    equal([entry.name for entry in path.parent.iterdir()], [path.name], "files left")
    return str(path)


def memory(*files, like=None):
    """What a VM has to which a chain was restored"""
    result = subprocess.run([IMAGES, "dump", like or files[-1], *files], capture_output=True, check=False, timeout=120)
    equal(result.returncode, 0, result.stderr)
    return result.stdout


def raw(number):
    return (made() / f"{number}.raw").read_bytes()


def refused(status, pattern, *arguments, **more):
    result = tool(*arguments, **more)
    equal(result.returncode, status, f"exit status, {result.stderr}")
    check(re.search(pattern, result.stderr.decode()), result.stderr)


def summary(path):
    return json.loads(tool("info", "--json", path).stdout)


# ---- merge ----

def a_merged_chain_restores_to_what_the_chain_does():
    for length in range(1, COUNT + 1):
        files = chain(*range(length))
        one = merged(*files)
        equal(tool("verify", one).returncode, 0, "verify")
        check(memory(one) == raw(length - 1), f"merged {length}")
        check(memory(*files) == raw(length - 1), f"chain of {length}")
        equal(summary(one)["version"], 1, "a full image is of version 1")


def what_is_merged_in_the_middle_takes_its_place():
    whole = pathlib.Path(merged(*chain(*range(COUNT)))).read_bytes()
    for first, last in itertools.combinations(range(1, COUNT), 2):
        part = merged(*chain(*range(first, last + 1)))
        told, ends = summary(part), [summary(path) for path in chain(first, last)]
        equal([told["parent"], told["identity"], told["generation"], told["version"]],
              [ends[0]["parent"], ends[1]["identity"], ends[1]["generation"], 2], "what it stands for")
        files = [*chain(*range(first)), part, *chain(*range(last + 1, COUNT))]
        check(pathlib.Path(merged(*files)).read_bytes() == whole, "merged again", first, last)
        equal(tool("verify", *files).returncode, 0, "verify")
        check(memory(*files) == raw(COUNT - 1), "restored", first, last)


def later_increments_fit_a_merged_image():
    one = merged(*chain(*range(5)))
    check(memory(one, *chain(5, 6, 7)) == raw(7), "the chain behind it")
    refused(1, "not its parents", "verify", one, *chain(6, 7))


def a_sequence_is_merged_like_a_chain():
    sequence = str(made() / "sequence.img")
    check(memory(merged(sequence)) == raw(COUNT - 1), "merged")
    check(memory(sequence, like=merged(sequence)) == raw(COUNT - 1), "restored")


def an_image_may_go_to_a_pipe_and_begin_anywhere():
    files = chain(*range(COUNT))
    piped = tool("merge", *files).stdout
    equal(subprocess.run([IMAGE, "verify", "-"], input=piped, capture_output=True, check=False).returncode, 0, "verify")
    path = fresh()
    path.write_bytes(piped)
    check(memory(str(path)) == raw(COUNT - 1), "restored")
    moved = []
    for file in files:
        moved.append(fresh())
        moved[-1].write_bytes(b"state" + bytes(8187) + pathlib.Path(file).read_bytes())
    check(tool("merge", "--offset", "8192", *moved).stdout == piped, "at an offset")


def what_does_not_fit_is_not_merged():
    path = fresh()
    for numbers in ((0, 2), (1, 0), (0, 1, 1), (0, 2, 1), (0, 1, 3)):
        refused(1, r"image is based on image 0x|based on no other", "merge", "--output", path, *chain(*numbers))
        refused(1, "not its parents", "verify", *chain(*numbers))
    refused(1, r"3\.img: not its parents: .*, which .*1\.img has", "verify", *chain(0, 1, 3, 4))
    check(not any(path.parent.iterdir()), "a file was left")


def a_damaged_image_is_not_merged():
    path, directory = fresh(), fresh().parent
    for number, change in itertools.product((0, 3), ("byte", "end", "empty")):
        data = bytearray(pathlib.Path(chain(number)[0]).read_bytes())
        if change == "byte":
            data[len(data) // 2] ^= 1
        (directory / "bad.img").write_bytes(data if change == "byte" else data[:-BLOCK] if change == "end" else b"")
        files = chain(*range(5))
        files[number] = str(directory / "bad.img")
        result = tool("merge", "--output", path, *files)
        check(result.returncode in (1, 3) and b"bad.img" in result.stderr, result.stderr)
    check(not any(path.parent.iterdir()), "a file was left")


def nothing_is_replaced():
    files = chain(0, 1)
    before = [pathlib.Path(file).read_bytes() for file in files]
    path = fresh()
    path.write_text("mine")
    for target in (path, files[0], files[1]):
        refused(3, "File exists", "merge", "--output", target, *files)
    equal(path.read_text(), "mine", "the file that was there")
    check([pathlib.Path(file).read_bytes() for file in files] == before, "a parent was written")
    refused(3, "No such file", "merge", "--output", path.parent / "none" / "x", *files)


def permissions_are_those_of_the_newest_image():
    files = [str(fresh()), str(fresh())]
    for file, number, mode in zip(files, (0, 1), (0o644, 0o600)):
        shutil.copyfile(chain(number)[0], file)
        os.chmod(file, mode)
    equal(os.stat(merged(*files)).st_mode & 0o777, 0o600, "permissions")


def a_full_disk_leaves_nothing():
    with open("/dev/full", "w", encoding="ascii") as full:
        result = subprocess.run([IMAGE, "merge", *chain(0, 1)], stdout=full, stderr=subprocess.PIPE, check=False)
    equal(result.returncode, 3, result.stderr)
    check(b"No space left" in result.stderr, result.stderr)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * BLOCK, 3 * BLOCK))

    for limited in (limit, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 * BLOCK, 3 * BLOCK))):
        path = fresh()
        result = tool("merge", "--output", path, *chain(0, 1), preexec_fn=limited)
        equal(result.returncode, 3, result.stderr)
        check(b"File too large" in result.stderr, result.stderr)
        check(not any(path.parent.iterdir()), "a file was left")


def killed_at_any_moment_the_parents_are_intact():
    files = chain(*range(COUNT))
    before = [pathlib.Path(file).read_bytes() for file in files]
    start = time.monotonic()
    whole = merged(*files)
    took = time.monotonic() - start
    finished = 0
    fatal = [signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM, signal.SIGXCPU, signal.SIGRTMAX]
    for kill in [signal.SIGKILL] * 40 + fatal * 3:
        path = fresh()
        with subprocess.Popen([IMAGE, "merge", "--output", path, *files], stderr=subprocess.DEVNULL) as process:
            time.sleep(random.uniform(0, 1.2 * took))
            process.send_signal(kill)
        if path.exists():
            finished += 1
            check(path.read_bytes() == pathlib.Path(whole).read_bytes(), "half an image has the name")
        left = [entry.name for entry in path.parent.iterdir() if entry != path]
        check(all(name.startswith(".new.img.") for name in left), left)
        check(kill == signal.SIGKILL or not left, "left after", kill, left)
    check(finished < 58, "none was killed while it worked")
    check([pathlib.Path(file).read_bytes() for file in files] == before, "a parent was written")


def what_its_caller_ignores_does_not_end_it():
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    path = fresh()
    with subprocess.Popen([IMAGE, "merge", "--output", path, *chain(*range(COUNT))], preexec_fn=ignore) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
    equal(process.returncode, 0, "exit status")
    check(path.exists(), "no image")


# ---- diff ----

def pages(number):
    """{gpa: contents} of all blocks"""
    data, found, at = raw(number), {}, 0
    while at < len(data):
        end = data.index(b"\n", at)
        gpa, size = (int(word, 16) for word in data[at:end].split())
        at = end + 1
        for block in range(0, size, BLOCK):
            found[gpa + block] = data[at + block:at + block + BLOCK]
        at += size
    return found


def differences(one, other):
    """What the two memories differ in, as diff should tell"""
    found = []
    for gpa in sorted({*one, *other}):
        what = "second" if gpa not in one else "first" if gpa not in other else "contents"
        if one.get(gpa) == other.get(gpa):
            continue
        if found and found[-1]["what"] == what and found[-1]["gpa"] + found[-1]["size"] == gpa:
            found[-1]["size"] += BLOCK
        else:
            found.append({"gpa": gpa, "size": BLOCK, "what": what})
    return found


def diff_tells_every_block_and_no_other():
    for first, second in ((0, 1), (1, 2), (1, 5), (5, 1), (0, COUNT - 1), (3, 3)):
        parents = [word for path in chain(*range(max(first, second))) for word in ("--parent", path)]
        result = tool("diff", "--json", *parents, *chain(first, second))
        expected = differences(pages(first), pages(second))
        told = json.loads(result.stdout)
        check(told["ranges"] == expected, first, second, told["ranges"][:5], expected[:5])
        equal(told["different"], sum(entry["size"] for entry in expected), "sum")
        equal(result.returncode, 1 if expected else 0, "exit status")
        quiet = tool("diff", "--quiet", *parents, *chain(first, second))
        equal([quiet.returncode, quiet.stdout], [result.returncode, b""], "quiet")
        lines = tool("diff", *parents, *chain(first, second)).stdout.decode().splitlines()
        equal(len(lines), len(expected) + 1, "lines")


def diff_of_a_chain_and_what_it_was_merged_into_is_none():
    files = chain(*range(COUNT))
    parents = [word for path in files[:-1] for word in ("--parent", path)]
    equal(tool("diff", *parents, files[-1], merged(*files)).returncode, 0, "a chain")
    equal(tool("diff", str(made() / "sequence.img"), merged(*files)).returncode, 0, "a sequence")
    equal(tool("diff", *chain(0), merged(*chain(0))).returncode, 0, "one image")


def diff_says_which_parent_it_lacks():
    identity = summary(chain(2)[0])["parent"]
    refused(3, f"2.img: .* is in image 0x{identity:016x}.*--parent", "diff", *chain(0, 2))
    refused(3, "damaged|not complete", "diff", chain(0)[0], cut(chain(1)[0]))


def cut(path):
    shorter = fresh()
    shorter.write_bytes(pathlib.Path(path).read_bytes()[:-BLOCK])
    return str(shorter)


# ---- info and verify ----

def info_has_a_line_for_each_image():
    lines = tool("info", *chain(2, 0, 1)).stdout.decode().splitlines()
    equal([int(line.split()[0]) for line in lines[1:]], [2, 0, 1], "generations")
    lines = tool("info", str(made() / "sequence.img")).stdout.decode().splitlines()
    equal([int(line.split()[0]) for line in lines[1:]], list(range(COUNT)), "generations of a sequence")
    images = json.loads(tool("info", "--json", str(made() / "sequence.img")).stdout)["images"]
    equal([image["parent"] for image in images[1:]], [image["identity"] for image in images[:-1]], "parents")
    equal([image["offset"] + image["size"] for image in images[:-1]],
          [image["offset"] for image in images[1:]], "one behind the other")
    equal([image["followed"] for image in images], [True] * (COUNT - 1) + [False], "followed")
    text = tool("info", *chain(1)).stdout.decode()
    check(f"what changed since image 0x{images and summary(chain(0)[0])['identity']:016x}" in text, text)


def of_a_sequence_that_breaks_off_what_is_there_is_told():
    path = fresh()
    data = (made() / "sequence.img").read_bytes()
    images = json.loads(tool("info", "--json", str(made() / "sequence.img")).stdout)["images"]
    for whole in range(1, COUNT):
        ends = images[whole - 1]["offset"] + images[whole - 1]["size"]
        for end in (ends, ends + BLOCK, ends + images[whole]["size"] - BLOCK):
            if whole == COUNT - 1 and end > ends:
                continue        # of the last image the lists alone are read
            path.write_bytes(data[:end])
            result = tool("info", path)
            equal(result.returncode, 1, result.stderr)
            check(re.search(rf"not complete: it ends at 0x{end:x}\b".encode(), result.stderr), result.stderr)
            equal(len(result.stdout.splitlines()), 1 + whole, "lines")
            equal(tool("info", "--json", path).stdout, b"", "JSON")


def a_chain_is_verified_as_a_whole():
    result = tool("verify", *chain(*range(COUNT)))
    equal(result.returncode, 0, "all")
    check(re.search(f"so are those that it is based on: .* in {COUNT} files", result.stdout.decode()), result.stdout)
    result = tool("verify", *chain(3))
    equal(result.returncode, 0, "an increment by itself")
    check(b"up to generation 3" in result.stdout, result.stdout)
    refused(1, "not complete", "verify", cut(chain(0)[0]), *chain(1))


def damage_in_a_sequence_is_found():
    data = (made() / "sequence.img").read_bytes()
    path = fresh()
    for at in range(len(data) // 40, len(data), len(data) // 20):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1:])
        for command in ("verify", "merge"):
            refused(1, "damaged", command, path, stdin=subprocess.DEVNULL)
    path.write_bytes(data[:-BLOCK * 3])
    refused(1, "not complete|damaged", "merge", path)


run([
    a_merged_chain_restores_to_what_the_chain_does,
    what_is_merged_in_the_middle_takes_its_place,
    later_increments_fit_a_merged_image,
    a_sequence_is_merged_like_a_chain,
    an_image_may_go_to_a_pipe_and_begin_anywhere,
    what_does_not_fit_is_not_merged,
    a_damaged_image_is_not_merged,
    nothing_is_replaced,
    permissions_are_those_of_the_newest_image,
    a_full_disk_leaves_nothing,
    killed_at_any_moment_the_parents_are_intact,
    what_its_caller_ignores_does_not_end_it,
    diff_tells_every_block_and_no_other,
    diff_of_a_chain_and_what_it_was_merged_into_is_none,
    diff_says_which_parent_it_lacks,
    info_has_a_line_for_each_image,
    of_a_sequence_that_breaks_off_what_is_there_is_told,
    a_chain_is_verified_as_a_whole,
    damage_in_a_sequence_is_found,
])
