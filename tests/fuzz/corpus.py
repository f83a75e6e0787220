#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Chooses a small corpus from what a fuzzer found: a few KiB, replayed by every test run.

usage: corpus.py FUZZER FOUND CORPUS

FUZZER is built by clang, FOUND the directory that it wrote to in a long run, CORPUS the one that
is checked in. What is in CORPUS stays: it holds inputs that showed faults. An input of FOUND
that is not long is taken, those first that reach most, if it reaches code that none of those
before it reaches.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

MOST = 40
LONGEST = 160


def coverage(fuzzer, directory):
    result = subprocess.run([fuzzer, "-runs=0", directory], stderr=subprocess.PIPE, check=True,
                            stdout=subprocess.DEVNULL, text=True, errors="replace")
    return int(re.findall(r"cov: (\d+)", result.stderr)[-1])


def main():
    fuzzer, found, corpus = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
    taken = [path.read_bytes() for path in sorted(corpus.iterdir())]
    with tempfile.TemporaryDirectory() as directory:
        chosen = pathlib.Path(directory) / "chosen"
        alone = pathlib.Path(directory) / "alone"
        chosen.mkdir()
        alone.mkdir()
        candidates = []
        for data in {path.read_bytes() for path in found.iterdir()}:
            if len(data) <= LONGEST:
                (alone / "0").write_bytes(data)
                candidates.append((-coverage(fuzzer, alone), len(data), data))
        for number, data in enumerate(taken):
            (chosen / f"{number:03}").write_bytes(data)
        reached = coverage(fuzzer, chosen)
        for _, _, data in sorted(candidates):
            if len(taken) == MOST:
                break
            path = chosen / f"{len(taken):03}"
            path.write_bytes(data)
            now = coverage(fuzzer, chosen)
            if now > reached:
                taken.append(data)
                reached = now
            else:
                path.unlink()
    for number, data in enumerate(taken):
        (corpus / f"{number:02}").write_bytes(data)
    print(f"{len(taken)} inputs of {sum(map(len, taken))} bytes reach {reached} edges")


main()
