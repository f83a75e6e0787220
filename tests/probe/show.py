#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem-show: its pictures, its JSON, its exit statuses, and what it does with broken dumps.

usage: show.py GMEM-SHOW SAMPLE GMEM-SHOW.1
"""
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import pty
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import xml.etree.ElementTree

from tap import check, equal, run

SHOW, SAMPLE = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:3])
MANUAL = pathlib.Path(sys.argv[3]).read_text()

SAMPLES = [("6.1", "host"), ("6.18", "mapped"), ("6.18", "shared"), ("7.3-swp-t1", "private"),
           ("arm64-7.3-64k", "shared")]
ESCAPE = "\033"
MIB = 1 << 20
GIB = 1 << 30


@functools.lru_cache(maxsize=None)
def sample(kernel="6.18", backing="shared"):
    result = subprocess.run([SAMPLE, kernel, backing], capture_output=True, check=True, timeout=60)
    return result.stdout


def run_show(dump, *options, **variables):
    """Bytes in; COLUMNS and NO_COLOR are unset unless given."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("COLUMNS", "NO_COLOR", "LC_ALL", "LC_CTYPE", "LANG")}
    environment.update(variables)
    return subprocess.run([SHOW, *options], input=dump, env=environment, capture_output=True,
                          timeout=100, check=False)


def show(dump, *options, status=0, **variables):
    result = run_show(dump, *options, **variables)
    if status is not None:
        equal(result.returncode, status, "exit status, " + result.stderr.decode())
    return result.stdout.decode("utf-8")


def piece(gpa, size, private=0, shared_resident=0, private_resident=0, nodes=()):
    return {"gpa": gpa, "size": size, "private": private, "shared_resident": shared_resident,
            "private_resident": private_resident,
            "nodes": [{"node": node, "pages": pages} for node, pages in nodes]}


def region(gpa, size, backing="shared", slot=0, ranges=None, **more):
    return {"gpa": gpa, "size": size, "backing": backing, "slot": slot, "lost": False,
            "readonly": False, "dirty_log": False, "file": None, "hva": None,
            "ranges": [piece(gpa, size)] if ranges is None else ranges, **more}


def dump_of(*regions, **more):
    return {"gmem_dump": 1, "library": "0.1.0", "name": None, "architecture": "x86_64",
            "page_size": 4096, "address_bits": 46, "memslots": 32764, "regions": list(regions),
            "stuck": [], "leases": [], **more}


def encode(dump):
    return json.dumps(dump).encode()


def two_nodes():
    """A machine with private memory on two nodes"""
    return dump_of(
        region(0, 64 * MIB, "private", 0, [
            piece(0, 16 * MIB, 0, 16 * MIB, 0, [(0, 16)]),
            piece(16 * MIB, 16 * MIB, 16 * MIB, 8 * MIB, 16 * MIB, [(0, 16)]),
            piece(32 * MIB, 16 * MIB, 4 * MIB, 0, 4096, [(1, 1)]),
            piece(48 * MIB, 16 * MIB, None, None, None)]),
        region(3 << 30, 2 * MIB, "device", None, []),
        region(4 << 30, 64 * MIB, "shared", 1,
               [piece(4 << 30, 64 * MIB, 0, 32 * MIB, 0, [(1, 12), (0, 4)])]))


# ---- pictures ----

def rows(text, label):
    """The bars with this label, without their frame"""
    return re.findall(rf"^ *{label} \[(.*)\]", text, re.M)


def bars_have_a_character_for_each_part():
    text = show(encode(two_nodes()), "--ascii")
    equal(rows(text, "state"), ["s" * 16 + "P" * 16 + "m" * 16 + "?" * 16], "states")
    equal(rows(text, "shared"), ["#" * 16 + "+" * 16 + "." * 16 + "?" * 16], "shared memory")
    equal(rows(text, "private"), ["." * 16 + "#" * 16 + "-" * 16 + "?" * 16], "private memory")
    equal(rows(text, "memory"), ["+" * 64], "memory")
    equal(rows(text, "node"), ["0" * 32 + "1" * 16 + " " * 16, "1" * 64], "nodes")


def ends_of_bars_say_how_much():
    text = show(encode(dump_of(
        region(0, 64 * MIB, ranges=[piece(0, 64 * MIB, 0, 16 * MIB)]),
        region(64 * MIB, 64 * MIB, ranges=[piece(64 * MIB, 64 * MIB, 0, 4096)]),
        region(128 * MIB, 64 * MIB, ranges=[piece(128 * MIB, 64 * MIB, 0, None)]),
        region(192 * MIB, 64 * MIB, ranges=[]))), "--ascii")
    equal(re.findall(r"\] *(\S+)$", text, re.M), ["25%", "<1%", "?", "?"], "percentages")


def holes_and_devices_are_told():
    text = show(encode(two_nodes()), "--ascii")
    check("nothing for 2.94 GiB" in text, text)
    check("0xc0000000  2 MiB, device\n" in text, text)
    equal(len(rows(text, "memory")), 1, "bars of regions that are neither private nor devices'")


def sums_are_told():
    text = show(encode(two_nodes()), "--ascii")
    check("128 MiB of memory in 2 regions, and 1 range of devices" in text, text)
    check("72.0 MiB of host memory used: 56 MiB shared, 16.0 MiB private" in text, text)
    check("20 MiB of it private to the guest (16%)" in text, text)


def every_picture_fits_its_width():
    dumps = [sample(*arguments) for arguments in SAMPLES] + [encode(two_nodes())]
    dumps.append(encode(dump_of(*[region(i * MIB, MIB, slot=i) for i in range(64)])))
    for dump in dumps:
        for width in (60, 80, 132, 200):
            for options in ((), ("--all",)):
                text = show(dump, "--unicode", *options, COLUMNS=str(width))
                # facts about a region are words, and may go on
                bars = [line for line in text.splitlines() if "▕" in line]
                check(bars, text)
                longest = max(len(line) for line in bars)
                check(longest <= width, f"{longest} columns, not {width}:\n", text)
    check(max(map(len, show(encode(two_nodes())).splitlines())) <= 80, "80 columns")


def unicode_only_where_the_locale_has_it():
    dump = encode(two_nodes())
    check(show(dump).isascii(), "in the C locale")
    check("█" in show(dump, LC_ALL="C.UTF-8"), "in a UTF-8 locale")
    check(show(dump, "--ascii", LC_ALL="C.UTF-8").isascii(), "with --ascii")
    check("█" in show(dump, "--unicode"), "with --unicode")


def colours_are_for_terminals():
    dump = sample("7.3-swp-t1", "private")
    check(ESCAPE not in show(dump), "colours without a terminal")
    check(ESCAPE in show(dump, "--color=always"), "no colours with --color=always")
    main, other = pty.openpty()
    result = subprocess.run([SHOW], input=dump, stdout=other, timeout=100, check=False,
                            env={**os.environ, "NO_COLOR": ""})
    os.close(other)
    equal(result.returncode, 0, "exit status")
    check(ESCAPE.encode() in os.read(main, 65536), "no colours on a terminal")
    os.close(main)


def names_do_not_steer_the_terminal():
    for arguments in SAMPLES:
        text = show(sample(*arguments), "--unicode")
        check(ESCAPE not in text and "grüß" in text, text)
    dump = dump_of(region(0, MIB, "\x1b[2J\n" + "x" * 200), name="\x07\x9b31m\u009b", architecture="\x1b]")
    text = show(encode(dump), "--ascii")
    check(not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), repr(text))


# One of each kind that could do something to a terminal or to a reader
HARMFUL = ["\x1b", "\x7f", "\x80", "\x85", "\x9b", "\x9d", "\x9f",      # controls, C0 and C1
           "\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069",  # direction of writing
           "\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff", "\ufff9", "\U000e0001", "\U000e0041",  # formats
           "\u034f", "\u115f", "\u3164", "\ufe0f", "\U000e0100",        # drawn as nothing
           "\u00a0", "\u2003", "\u2028", "\u2029",                      # spaces and lines
           "\ue000", "\U000f0000", "\U0010fffd",                        # private use
           "\ufdd0", "\ufffe", "\uffff", "\U0001ffff", "\U0010ffff",    # no characters
           "\u0378", "\U0001f8ff", "\U000e0080"]                        # not assigned


def every_place_for_a_name(name):
    yield dump_of(name=name)
    yield dump_of(architecture=name)
    yield dump_of(library=name)
    yield dump_of(region(0, MIB, name))
    yield dump_of(region(0, MIB, kind=name, identity=1))
    yield dump_of(*[region(i * MIB, MIB, name, i) for i in range(40)])
    yield dump_of(region(0, MIB), leases=[{"gpa": 0, "size": 1, "holder": name}])


def no_harmful_character_comes_through():
    """As a character and as an escape sequence, in each place and in each kind of output"""
    everything = "<" + "|".join(HARMFUL) + ">"
    for dump in every_place_for_a_name(everything):
        for ensure_ascii in (False, True):
            encoded = json.dumps(dump, ensure_ascii=ensure_ascii).encode()
            for options in (("--ascii",), ("--unicode",), ("--svg",), ("--json",)):
                text = show(encoded, *options)
                found = [hex(ord(c)) for c in HARMFUL if c in text]
                equal(found, [], f"in the output with {options}")
            equal(json.loads(show(encoded, "--json"))["dump"], dump, "the dump that the JSON means")
    text = show(encode(dump_of(name=everything)), "--ascii")
    check(text.startswith("<" + "|".join("?" * len(HARMFUL)) + ">\n"), text)


def harmless_names_come_through():
    name = "gr\u00fc\u00df e\u0301 \u03a9 \u0416 \u05e9 \u0639 \u0915 \u4e2d \ud55c \u2588 \U0001f427"
    for options in (("--unicode",), ("--svg",)):
        check(name in show(encode(dump_of(name=name)), *options), options)


def what_the_command_line_says_does_not_steer_the_terminal():
    for argument in (b"/no\x9b\xc2\x9b\x1b[2J\xe2\x80\xae", b"--no\x9b\xc2\x9b\x1b[2J\xe2\x80\xae",
                     b"--color=\xc2\x9b", b"--width=\xe2\x80\xae", b"--svg=\x1b", b"-\x9b", b"-\x1b"):
        result = run_show(sample(), argument)
        check(result.returncode in (2, 3) and b"?" in result.stderr, argument, result.stderr)
        check(re.fullmatch(rb"[\n -~]+", result.stderr), result.stderr)


def a_long_name_is_cut_between_characters():
    dump = dump_of(*[region(i * MIB, MIB, "\u4e2d" * 20, i) for i in range(40)])
    equal(show(encode(dump), "--ascii").count(" " + "\u4e2d" * 8 + " "), 40, "lines with 8 characters")


def many_regions_get_a_line_each():
    dump = encode(dump_of(*[region(i * MIB, MIB, slot=i) for i in range(100)]))
    text = show(dump, "--ascii")
    check(len(text.splitlines()) < 110, text)
    equal(len(rows(text, ".*")), 100, "lines")
    equal(len(rows(show(dump, "--ascii", "--all"), "memory")), 100, "pictures with --all")


def kinds_are_shown_and_memory_of_the_host_is_counted():
    kinds = [("ram", None), ("rom", None), ("device", []), ("external", [])]
    dump = encode(dump_of(*[region(i * MIB, MIB, "host", i, ranges, kind=kind, identity=i)
                            for i, (kind, ranges) in enumerate(kinds)]))
    for options in (("--ascii",), ("--svg",)):
        text = show(dump, *options)
        for kind, _ in kinds:
            equal(f"memslot {[k for k, _ in kinds].index(kind)}, kind {kind}" in text, kind != "ram", kind)
    sums = json.loads(show(dump, "--json"))["sums"]
    equal([sums["memory"], sums["devices"], sums["unknown"]], [2 * MIB, 2 * MIB, 0], "sums")
    text = show(dump, "--ascii")
    check("\n2 MiB of memory in 2 regions, 2 MiB of kind device or external in 2\n" in text, text)


def leases_name_their_holders():
    leases = [{"gpa": 4097 * i, "size": 100, "holder": f"queue\n{i}"} for i in range(10)]
    text = show(encode(dump_of(region(0, MIB), leases=leases)))
    check("\n0x1001  100 bytes, in use by queue?1\n" in text, text)
    check("\nand 2 more in use\n" in text, text)


def lengths_of_bars_tell_sizes():
    """To scale if the shortest can be seen, else on a logarithmic scale, which says so"""
    text = show(encode(dump_of(region(0, 64 * MIB), region(64 * MIB, 32 * MIB), region(128 * MIB, 4 * MIB))), "--ascii")
    equal([len(bar) for bar in rows(text, "memory")], [64, 32, 4], "characters")
    check("bars are to scale: the longest is 64 MiB\n" in text, text)
    equal(re.findall(r"\] *(\S+)$", text, re.M), ["0%"] * 3, "percentages in one column")
    equal(len({len(line) for line in text.splitlines() if "memory [" in line}), 1, "ends of lines")

    text = show(encode(dump_of(region(0, MIB), region(MIB, 15 * MIB), region(16 * MIB, 16 * MIB), region(GIB, GIB))), "--ascii")
    lengths = [len(bar) for bar in rows(text, "memory")]
    equal([lengths[0], lengths[2], lengths[3]], [4, 28, 64], "characters")
    check(lengths[1] in (27, 28), lengths)
    check("bars are on a logarithmic scale, from 1 MiB to 1 GiB\n" in text, text)

    equal("scale" in show(encode(dump_of(region(0, MIB), region(MIB, MIB)))), False, "bars of one length")
    lines = show(encode(dump_of(*[region(i * GIB, MIB << i % 10, slot=i) for i in range(40)])), "--ascii")
    check("logarithmic scale, from 1 MiB to 512 MiB" in lines, lines)


def an_empty_machine_is_a_picture():
    check("0 bytes of memory in 0 regions" in show(encode(dump_of())), "nothing")


def svg_is_well_formed():
    strange = dump_of(region(0, MIB, "<&>\x01\uffff\"'"), name="a<b>&\"'\x0b\ufffe\U0010ffff")
    dumps = [sample(*arguments) for arguments in SAMPLES] + [encode(two_nodes()), encode(strange),
                                                            encode(dump_of())]
    for dump in dumps:
        root = xml.etree.ElementTree.fromstring(show(dump, "--svg"))
        equal(root.tag, "{http://www.w3.org/2000/svg}svg", "root")
        width, height = float(root.get("width")), float(root.get("height"))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
            x, y, w, h = (float(rect.get(name, "0")) for name in ("x", "y", "width", "height"))
            check(x >= 0 and y >= 0 and w > 0 and x + w <= width + 1 and y + h <= height, rect.attrib)
    check("a&lt;b&gt;&amp;" in show(encode(strange), "--svg"), "escapes")


def frames(dump):
    """The frames of the regions' bars: left, width"""
    root = xml.etree.ElementTree.fromstring(show(encode(dump), "--svg", status=None))
    return [float(rect.get("width")) for rect in root.iter("{http://www.w3.org/2000/svg}rect")
            if rect.get("class") in ("frame", "lost") and float(rect.get("x")) == 150 and rect.get("height") != "12"]


def svg_has_bars_to_scale_and_marks_a_logarithmic_one():
    dump = dump_of(region(0, 64 * MIB), region(64 * MIB, 16 * MIB), region(128 * MIB, 2 * MIB, "device", None, []))
    equal(frames(dump), [700, 175, 21.9], "widths")
    text = show(encode(dump), "--svg")
    check(">to scale<" in text and "log scale" not in text, text)
    equal(re.findall(r'class="tick">(.*?)<', text), ["0", "16 MiB", "32 MiB", "48 MiB", "64 MiB"], "marks")

    dump = dump_of(region(0, MIB), region(MIB, MIB), region(32 * MIB, 32 * MIB), region(GIB, GIB))
    equal(frames(dump), [14, 14, 357, 700], "widths")
    text = show(encode(dump), "--svg")
    check(">log scale<" in text and "to scale" not in text, text)
    equal(re.findall(r'class="tick">(.*?)<', text), ["1 MiB", "4 MiB", "16 MiB", "64 MiB", "256 MiB", "1 GiB"], "marks")


def svg_shows_a_lost_memslot_in_red():
    text = show(encode(dump_of(region(0, MIB), region(MIB, MIB, lost=True))), "--svg", status=1)
    equal(text.count('<tspan class="warning">MEMSLOT LOST</tspan>'), 1, "words")
    equal(text.count('class="lost"'), 1, "frames")
    check(re.search(r"^\.warning \{ fill: #b00000;", text, re.M), "colour of words")
    check(re.search(r"^\.lost \{ .*stroke: #b00000;", text, re.M), "colour of the frame")


def svg_has_words_for_who_cannot_see_it():
    dump = dump_of(region(0, MIB, ranges=[piece(0, MIB, 0, MIB // 2)], lost=True),
                   *[region(i * MIB, MIB, slot=i) for i in range(1, 40)], name="a<b>&",
                   stuck=[region(0, MIB, slot=7, ranges=[])])
    root = xml.etree.ElementTree.fromstring(show(encode(dump), "--svg", status=1))
    space = "{http://www.w3.org/2000/svg}"
    equal(root.get("role"), "img", "role")
    words = {element.get("id"): element for element in root if element.tag in (space + "title", space + "desc")}
    equal(root.get("aria-labelledby").split(), list(words), "what labels it")
    equal(root[0].tag, space + "title", "first element")
    equal(root[0].text, "Guest memory of a<b>&", "title")
    text = root[1].text
    for sentence in ("40 MiB of memory, 512 KiB of host memory used. 1 memslot is stuck.",
                     "At 0x0: 1 MiB shared, memslot 0, 512 KiB used, MEMSLOT LOST.",
                     "At 0x1f00000: 1 MiB shared, memslot 31, 0 bytes used.", "And 8 more regions."):
        check(sentence in text, sentence, "is not in", text)


# ---- programs that serve dumps ----

@contextlib.contextmanager
def server(*answers, backlog=8):
    """Serves one answer after the other, then ends. A number among them is a pause in seconds;
    None: the connection stays open without an answer."""
    def serve(listener):
        kept = []
        for answer in answers:
            if isinstance(answer, (int, float)):
                time.sleep(answer)
                continue
            connection, _ = listener.accept()
            if answer is None:
                kept.append(connection)
                continue
            with contextlib.suppress(OSError):
                connection.sendall(answer)
            connection.close()
        listener.close()
        for connection in kept:
            connection.close()
    with tempfile.TemporaryDirectory() as directory:
        path = directory + "/vm.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(backlog)
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield path
        thread.join(timeout=20)


def a_program_is_asked_through_its_socket():
    for dump in (encode(two_nodes()), sample()):
        with server(dump) as path:
            equal(show(b"", "--socket", path, "--ascii"), show(dump, "--ascii"), "picture")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(b"\0")
    listener.listen(1)
    name = listener.getsockname().decode().replace("\0", "@", 1)
    thread = threading.Thread(target=lambda: listener.accept()[0].sendall(sample()), daemon=True)
    thread.start()
    check("memslot" in show(b"", "--socket", name), "an abstract name")
    listener.close()


def whoever_does_not_serve_is_status_3():
    with tempfile.TemporaryDirectory() as directory:
        dead = f"{directory}/dead.sock"
        socket.socket(socket.AF_UNIX).bind(dead)
        check_who_does_not_serve(dead)


def check_who_does_not_serve(dead):
    for path, pattern in (("/nothing/of/the/kind", b"there is no such socket"), (SHOW, b"this is no socket"),
                          (dead, b"no program listens"),
                          ("x" * 200, b"1 to 107 bytes, this one 200")):
        for options in ((), ("--watch", "1")):
            result = run_show(b"", "--socket", path, *options)
            equal(result.returncode, 3, result.stderr)
            check(pattern in result.stderr, result.stderr)
    for answer, pattern in ((b"", b"dump is empty"), (sample()[:-3], b"no JSON"), (b"\x1b[2J\n", b"no JSON")):
        with server(answer) as path:
            result = run_show(b"", "--socket", path)
            equal(result.returncode, 3, result.stderr)
            check(pattern in result.stderr, result.stderr)
            check(not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", result.stderr + result.stdout), result)


def a_watch_shows_until_the_program_ends():
    lost = encode(dump_of(region(0, MIB, lost=True)))
    with server(sample(), encode(two_nodes()), lost) as path:
        result = run_show(b"", "--socket", path, "--watch", "0.1", "--ascii", TERM="xterm")
    equal(result.returncode, 1, "status of the last picture")
    text = result.stdout.decode()
    equal(len(re.findall(rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  {re.escape(path)}  every 0.1 s$", text, re.M)), 3, "heads")
    check(ESCAPE not in text, "colour codes in a file")
    check(b"the program that ran the VM has ended, or serves no dumps any more" in result.stderr, result.stderr)
    with server(sample(), sample()) as path:
        result = run_show(b"", "--socket", path, "--watch", "0.1", "--json")
    decoder, text, count = json.JSONDecoder(), result.stdout.decode(), 0
    while text.strip():
        _, end = decoder.raw_decode(text.lstrip())
        text, count = text.lstrip()[end:], count + 1
    equal(count, 2, "objects")


def a_watch_outlives_broken_answers():
    with server(sample(), sample()[:100], b"", sample()) as path:
        result = run_show(b"", "--socket", path, "--watch", "0.1", "--ascii")
    equal(result.stdout.count(b"every 0.1 s"), 4, "heads")
    equal(result.stdout.count(b"nothing there"), 2, "pictures")


class Terminal:
    """gmem-show on a terminal of 20 lines"""
    def __init__(self, *arguments, reads=True, columns=80, ignored=()):
        self.main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
        self.process = subprocess.Popen([SHOW, *arguments], stdout=other, stderr=other, stdin=subprocess.DEVNULL,
                                        env={**os.environ, "LC_ALL": "C.UTF-8", "NO_COLOR": ""})
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(other)
        self.text = b""
        self.thread = threading.Thread(target=self.read, daemon=True)
        if reads:
            self.thread.start()

    def read(self):
        with contextlib.suppress(OSError):
            while data := os.read(self.main, 65536):
                self.text += data

    def end(self, signal_number):
        self.process.send_signal(signal_number)
        status = self.process.wait(timeout=20)
        if not self.thread.ident:
            self.thread.start()
        self.thread.join(timeout=20)
        os.close(self.main)
        return status


def a_watch_draws_in_place_and_ends_on_a_signal():
    for number in (signal.SIGINT, signal.SIGTERM):
        with server(*[sample()] * 4, 0) as path:
            terminal = Terminal("--socket", path, "--watch", "0.3")
            deadline = time.monotonic() + 20
            while terminal.text.count(b"\033[H") < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            equal(terminal.end(number), 0, "exit status")
            with contextlib.suppress(OSError):      # what is left of the answers
                for _ in range(4):
                    socket.socket(socket.AF_UNIX).connect(path)
        pictures = terminal.text.decode().split("\033[H")[1:]
        check(len(pictures) >= 2, terminal.text)
        for picture in pictures:
            check(picture.endswith("\033[J"), repr(picture))
            check(picture.count("\n") <= 19, "lines of a picture", picture)
        check(b"\033[2J" not in terminal.text, "the screen is cleared, which flickers")


def a_line_of_a_watch_takes_one_row():
    for columns, color in ((40, "never"), (50, "always")):
        with server(*[sample()] * 2) as path:
            terminal = Terminal("--socket", path, "--watch", "0.1", f"--color={color}", columns=columns)
            terminal.process.wait(timeout=20)
            terminal.end(0)
        for picture in terminal.text.decode().split("\033[H")[1:]:
            lines = re.sub(r"\033\[[0-9;]*[mKJ]", "", picture).split("\n")
            widths = [len(line.rstrip("\r")) for line in lines if not line.startswith("gmem-show: ")]
            check(max(widths) <= columns, columns, picture)


def a_watch_leaves_signals_ignored_that_nohup_ignores():
    with server(*[sample()] * 4) as path:
        terminal = Terminal("--socket", path, "--watch", "0.3", ignored=[signal.SIGHUP, signal.SIGINT])
        deadline = time.monotonic() + 20
        while b"\033[H" not in terminal.text and time.monotonic() < deadline:
            time.sleep(0.05)
        terminal.process.send_signal(signal.SIGHUP)
        terminal.process.send_signal(signal.SIGINT)
        terminal.process.wait(timeout=20)
        equal(terminal.end(0), 0, "exit status")
    equal(terminal.text.count(b"\033[H"), 4, "pictures, to the last")


def a_terminal_that_is_held_does_not_keep_a_watch():
    with server(*[sample("7.3-swp-t1", "private")] * 1, 0) as path:
        terminal = Terminal("--socket", path, "--watch", "5", "--color=always", "--all", reads=False)
        time.sleep(1.5)
        equal(terminal.end(signal.SIGTERM), 0, "exit status")


def a_program_that_hangs_is_told_of():
    with server(sample(), None, 5) as path:
        terminal = Terminal("--socket", path, "--watch", "0.1")
        deadline = time.monotonic() + 20
        while b"does not answer" not in terminal.text and time.monotonic() < deadline:
            time.sleep(0.1)
        check(b"the program that runs the VM does not answer; trying again" in terminal.text, terminal.text[-300:])
        equal(terminal.end(signal.SIGINT), 0, "exit status")


# ---- JSON ----

def json_has_the_dump_as_it_was():
    for arguments in SAMPLES:
        dump = sample(*arguments)
        equal(json.loads(show(dump, "--json"))["dump"], json.loads(dump), f"dump of {arguments}")
    equal(json.loads(show(encode(two_nodes()), "--json"))["dump"], two_nodes(), "dump")


def json_can_be_shown_again():
    once = json.loads(show(sample(), "--json"))["dump"]
    equal(show(encode(once)), show(sample()), "picture of the cleaned dump")


def no_number_is_taken_for_null():
    """2^64 - 1 stands for null inside gmem-show."""
    most = (1 << 64) - 1
    dump = dump_of(region(0, MIB, file={"fd": most, "size": most, "offset": most, "create_flags": most}),
                   memslots=most, leases=[{"gpa": most, "size": most, "holder": "x"}])
    equal(json.loads(show(encode(dump), "--json"))["dump"], dump, "dump")
    refused(encode(dump_of(region(0, MIB, hva=most))), "this is no dump: line 1: .*would stand for null")


def unknown_members_are_left_out():
    dump = two_nodes()
    extra = {"future": [{"a": -1.5e3}, None, "\ud83d\udc27", [], {}, True], "zz": 0}
    wide = {**dump, **extra, "regions": [
        {**one, **extra, "ranges": [{**part, **extra} for part in one["ranges"]]}
        for one in dump["regions"]]}
    equal(json.loads(show(encode(wide), "--json"))["dump"], dump, "dump")


def json_has_the_sums():
    whole = json.loads(show(encode(two_nodes()), "--json"))
    equal(whole["schema"], 1, "schema")
    equal(whole["sums"], {"regions": 3, "memory": 128 * MIB, "devices": 2 * MIB,
                          "private": 20 * MIB, "shared_resident": 56 * MIB,
                          "private_resident": 16 * MIB + 4096, "unknown": 16 * MIB}, "sums")


def strings_are_decoded_and_encoded():
    for written, read in (('"\\u0041\\n\\/\\t\\"\\\\"', 'A\n/\t"\\'), ('"\\ud83d\\udc27"', "\U0001f427"),
                          ('"\\ud83d"', "\ufffd"), ('"\\udc27x"', "\ufffdx"),
                          ('"\\ud83d\\u0041"', "\ufffdA"), ('"a\\u0000b"', "a\ufffdb"),
                          ('"\u00e9\u20ac\U0001f427"', "\u00e9\u20ac\U0001f427")):
        dump = json.dumps(dump_of()).replace('"name": null', f'"name": {written}').encode()
        equal(json.loads(show(dump, "--json"))["dump"]["name"], read, written)


# ---- exit statuses ----

def lost_and_stuck_memslots_are_status_1():
    lost = dump_of(region(0, MIB, lost=True))
    stuck = dump_of(stuck=[region(0, MIB, slot=7, ranges=[])])
    for dump in (lost, stuck):
        for options in ((), ("--json",), ("--svg",), ("--quiet",)):
            show(encode(dump), *options, status=1)
    check("LOST" in show(encode(lost), status=1), "lost")
    check("memslot 7 is stuck" in show(encode(stuck), status=1), "stuck")


def quiet_says_nothing():
    equal(show(sample(), "--quiet"), "", "output")


def wrong_usage_is_status_2():
    for options in (("--nonsense",), ("a", "b"), ("--json", "--svg"), ("--quiet", "--json"),
                    ("--width", "x"), ("--width", "31"), ("--width", "-80"), ("--color=mauve",)):
        result = run_show(sample(), *options)
        equal(result.returncode, 2, f"exit status of {options}")
        equal(result.stdout, b"", "output")
        check(b"--help" in result.stderr, result.stderr)


def a_file_that_is_not_there_is_status_3():
    result = run_show(b"", "/nonexistent/dump")
    equal(result.returncode, 3, "exit status")
    check(b"/nonexistent/dump: No such file" in result.stderr, result.stderr)
    equal(run_show(b"", "/").returncode, 3, "exit status of a directory")


def output_that_cannot_be_written_is_status_3():
    with open("/dev/full", "wb") as full:
        result = subprocess.run([SHOW], input=sample(), stdout=full, stderr=subprocess.PIPE,
                                timeout=100, check=False)
    equal(result.returncode, 3, "exit status")
    check(b"standard output" in result.stderr, result.stderr)


def a_file_is_read_like_standard_input():
    result = subprocess.run([SHOW, "--json", "/dev/stdin"], input=sample(), capture_output=True,
                            timeout=100, check=False)
    equal(result.stdout.decode(), show(sample(), "--json", "-"), "output")


# ---- broken dumps ----

def refused(dump, sentence):
    result = run_show(dump)
    equal(result.returncode, 3, f"exit status of {dump[:80]!r}")
    equal(result.stdout, b"", "output")
    check(re.match(r"gmem-show: .*" + sentence, result.stderr.decode("utf-8", "replace")),
          f"{dump[:80]!r} gives {result.stderr!r}, not {sentence!r}")


def what_is_no_json_is_refused_with_its_place():
    for dump, sentence in (
            (b" \n", "line 2, column 1: it ends where a value"),
            (b"[1,\n 2,]", "line 2, column 4"), (b"{\"a\" 1}", "a ':' should"), (b"{a:1}", "a '\"' should"),
            (b"[1 2]", "a ']' should"), (b"{\"a\":1", "it ends where a '}'"), (b"nul", "no JSON value"),
            (b"[01]", "begins with 0"), (b"[-]", "a digit"), (b"[1.]", "a digit"), (b"[1e]", "a digit"),
            (b"[\"\x01\"]", "a control"), (b"[\"\xff\"]", "not UTF-8"), (b"[\"\xe2\x82\"]", "not UTF-8"),
            (b"[\"abc", "ends inside a string"), (b"[\"abc\\", "ends inside a string"),
            (b"[\"\\q\"]", "no escape"), (b"[\"\\u12g4\"]", "four hex"), (b"[\"\\u12", "four hex"),
            (b"{} {}", "more follows"), (b"\0", "no JSON value"), (b"[\"a\0b\"]", "a control"),
            (b"[" * 100000, "inside each other"), (b"{\"a\":" * 100000, "inside each other")):
        refused(dump, "this is no JSON: .*" + sentence)
    refused(b"", "the dump is empty")


def what_is_no_dump_is_refused_with_its_place():
    for dump, sentence in (
            (b"null", "an object should"), (b"{}", "no \"gmem_dump\""), (b"{\n\"gmem_dump\":true}", "2: .*whole"),
            (encode(dump_of(gmem_dump=2)), "format 2 is not known"),
            (encode(dump_of(page_size=0)), "a page of 0"), (encode(dump_of(page_size=4097)), "a page of"),
            (encode(dump_of(memslots=-1)), "whole number"), (encode(dump_of(memslots=1.5)), "whole number"),
            (encode(dump_of(memslots=1 << 64)), "whole number"), (encode(dump_of(regions={})), "array"),
            (encode(dump_of(1)), "an object should"), (encode(dump_of(region(0, 0))), "no range"),
            (encode(dump_of(region((1 << 64) - 4096, 8192))), "no range"),
            (encode(dump_of(region(1, 4096, ranges=[]))), "multiple of the page"),
            (encode(dump_of(region(0, MIB), region(4096, MIB))), "overlaps"),
            (encode(dump_of(region(MIB, MIB), region(0, MIB))), "comes before"),
            (encode(dump_of(region(0, MIB, ranges=[piece(4096, 4096)]))), "does not follow"),
            (encode(dump_of(region(0, MIB, ranges=[piece(0, 2 * MIB)]))), "does not follow"),
            (encode(dump_of(region(0, MIB, ranges=[piece(0, MIB, shared_resident=MIB + 1)]))), "more than all"),
            (encode(dump_of(region(0, MIB, ranges=[piece(0, MIB, private=2 * MIB)]))), "more than all"),
            (encode(dump_of(region(0, MIB, ranges=[piece(0, MIB, nodes=[(0, 257)])]))), "as many pages"),
            (encode(dump_of(region(0, MIB, None))), "a string")):
        refused(dump, "this is no dump: line .*" + sentence)


def every_member_is_needed_and_has_its_type():
    def broken(thing):
        """Each way to take a member away, or to give it another type"""
        if isinstance(thing, dict):
            for name in thing:
                yield {key: value for key, value in thing.items() if key != name}
                yield {**thing, name: [[]] if not isinstance(thing[name], list) else 0}
                for other in broken(thing[name]):
                    yield {**thing, name: other}
        elif isinstance(thing, list):
            for i, element in enumerate(thing):
                for other in broken(element):
                    yield thing[:i] + [other] + thing[i + 1:]

    whole = dump_of(region(0, MIB, file={"fd": 3, "size": MIB, "offset": 0, "create_flags": 3},
                           ranges=[piece(0, MIB, nodes=[(0, 1)])]),
                    leases=[{"gpa": 0, "size": 1, "holder": "x"}])
    count = 0
    for dump in broken(whole):
        refused(encode(dump), "this is no dump: line 1: ")
        count += 1
    check(count >= 50, count)


def every_beginning_of_a_dump_is_refused():
    dump = encode(two_nodes())
    for size in range(0, len(dump) - 1, 7):
        refused(dump[:size], "")


def no_damage_makes_it_crash():
    generator = random.Random(7)
    dump = bytearray(encode(two_nodes()))
    tokens = [b"", b"0", b"18446744073709551615", b"18446744073709547520", b"-1", b"1e9", b"null", b"[]", b"{}",
              b"4096", b'"', b"\\u0000", b"[[", b"\xff", b","]
    for _ in range(600):
        damaged = bytearray(dump)
        for _ in range(generator.choice((1, 1, 2, 5))):
            at = generator.randrange(len(damaged))
            number = re.compile(rb"\d+").search(damaged, at)
            if number and generator.random() < 0.6:
                damaged[number.start():number.end()] = generator.choice(tokens)
            else:
                damaged[at:at + generator.choice((0, 1, 9))] = generator.choice(tokens)
        for options in (("--ascii",), ("--svg",), ("--json",)):
            result = run_show(bytes(damaged), *options)
            check(result.returncode in (0, 1, 3), options, result.returncode, bytes(damaged), result.stderr)
            check((result.returncode == 3) == bool(result.stderr), result.stderr)
            if result.returncode != 3:
                break


def the_largest_addresses_are_shown():
    top = (1 << 64) - MIB
    dump = encode(dump_of(region(top, MIB, ranges=[piece(top, MIB, 0, MIB, 0, [((1 << 64) - 2, 1)])])))
    for options in (("--ascii",), ("--svg",), ("--json",)):
        show(dump, *options)
    check("0xfffffffffff00000" in show(dump), "address")


# ---- the manual ----

def version_and_help_say_so():
    check(re.fullmatch(r"gmem-show \d+\.\d+\.\d+\n", show(b"", "--version")), "version")
    check(show(b"", "--help").startswith("Usage: gmem-show"), "help")


def the_manual_has_every_option_and_member():
    options = set(re.findall(r"--([a-z][a-z-]*)", show(b"", "--help")))
    documented = set(re.findall(r"^\.It Fl -([a-z-]+)", MANUAL, re.M))
    check(len(options) >= 9, options)
    equal(sorted(options ^ documented), [], "not in both --help and the manual")

    section = MANUAL.split(".Sh JSON")[1].split(".Sh ")[0]
    whole = json.loads(show(sample(), "--json"))
    equal(set(re.findall(r"^\.It Cm (\w+)", section, re.M)), {*whole, *whole["sums"]}, "members")


run([
    bars_have_a_character_for_each_part,
    ends_of_bars_say_how_much,
    holes_and_devices_are_told,
    sums_are_told,
    every_picture_fits_its_width,
    unicode_only_where_the_locale_has_it,
    colours_are_for_terminals,
    names_do_not_steer_the_terminal,
    no_harmful_character_comes_through,
    harmless_names_come_through,
    what_the_command_line_says_does_not_steer_the_terminal,
    a_long_name_is_cut_between_characters,
    many_regions_get_a_line_each,
    kinds_are_shown_and_memory_of_the_host_is_counted,
    leases_name_their_holders,
    lengths_of_bars_tell_sizes,
    an_empty_machine_is_a_picture,
    svg_is_well_formed,
    svg_has_bars_to_scale_and_marks_a_logarithmic_one,
    svg_shows_a_lost_memslot_in_red,
    svg_has_words_for_who_cannot_see_it,
    a_program_is_asked_through_its_socket,
    whoever_does_not_serve_is_status_3,
    a_watch_shows_until_the_program_ends,
    a_watch_outlives_broken_answers,
    a_watch_draws_in_place_and_ends_on_a_signal,
    a_line_of_a_watch_takes_one_row,
    a_watch_leaves_signals_ignored_that_nohup_ignores,
    a_terminal_that_is_held_does_not_keep_a_watch,
    a_program_that_hangs_is_told_of,
    json_has_the_dump_as_it_was,
    json_can_be_shown_again,
    no_number_is_taken_for_null,
    unknown_members_are_left_out,
    json_has_the_sums,
    strings_are_decoded_and_encoded,
    lost_and_stuck_memslots_are_status_1,
    quiet_says_nothing,
    wrong_usage_is_status_2,
    a_file_that_is_not_there_is_status_3,
    output_that_cannot_be_written_is_status_3,
    a_file_is_read_like_standard_input,
    what_is_no_json_is_refused_with_its_place,
    what_is_no_dump_is_refused_with_its_place,
    every_member_is_needed_and_has_its_type,
    every_beginning_of_a_dump_is_refused,
    no_damage_makes_it_crash,
    the_largest_addresses_are_shown,
    version_and_help_say_so,
    the_manual_has_every_option_and_member,
])
