#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is each row of docs/sandbox.table, in each of its phases, a call that a test makes?

usage: reach.py DOCS/SANDBOX.PY TABLE PROGRAM...

Runs the programs under strace. They tell by the name of their process when they enter a
phase. A row that none of them reaches here must be excused below, with the reason.
"""
import collections
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, note, run

spec = importlib.util.spec_from_file_location("made", sys.argv[1])
made = importlib.util.module_from_spec(spec)
sys.modules["made"] = made
spec.loader.exec_module(made)

TABLE = made.read_table(sys.argv[2])
PROGRAMS = sys.argv[3:]
ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}[os.uname().machine]

# Why no test reaches a row here: {name: reason}, or {name: {phase: reason}}
EXCUSED = {}


def trace(program, reached):
    """Adds {phase: {call, or (ioctl, request)}}"""
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        done = subprocess.run(["strace", "-f", "-X", "raw", "-o", log, program], env=os.environ | {"GMEM_TEST_SHORT": "1"},
                              capture_output=True, text=True, check=False)
        if done.returncode == 77 or "# SKIP" in done.stdout.split("\n")[0]:
            raise Skip(done.stdout.split("\n")[0])
        equal(done.returncode, 0, f"{program}:\n{done.stdout}")
        with open(log, encoding="utf-8", errors="replace") as lines:
            read_log(lines, reached)


def read_log(lines, reached):
    process, named, phase = {}, {}, {}
    for line in lines:
        match = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)", line)
        if not match:
            continue
        thread, call, rest = match.groups()
        owner = process.setdefault(thread, thread)
        if "resumed>" not in line and phase.get(owner) and call != "exit_group":
            reached[phase[owner]].add(call)
            if call == "ioctl":
                reached[phase[owner]].add(int(rest.split(", ")[1], 16))
        if call in ("clone", "clone3") and (born := re.search(r" = (\d+)$", line)):
            # A thread of this process, or a process of its own
            flags = re.search(r"flags=(0x[0-9a-f]+)", line)
            is_thread = flags and int(flags[1], 16) & 0x10000
            process[born[1]] = owner if is_thread else born[1]
        if call == "prctl" and (name := re.match(r'0xf[^"]*"(\w+)"', rest)):
            named[owner] = name[1]
        if call == "seccomp" and re.search(r" = 0$", line):
            phase[owner] = named.get(owner)


def every_row_is_reached_or_excused():
    if not shutil.which("strace"):
        raise Skip("no strace here")
    reached = collections.defaultdict(set)
    for program in PROGRAMS:
        trace(program, reached)
    check(set(made.PHASES) - {"convert"} <= set(reached), "phases:", sorted(reached, key=str))
    missed = [(row.name, phase) for row in TABLE.calls + TABLE.requests for phase in row.phases
              if ARCHITECTURE in row.architectures and row.name not in reached[phase]
              and row.number not in reached[phase]]
    excuse = {(name, phase): why if isinstance(why, str) else why.get(phase)
              for name, why in EXCUSED.items() for phase in made.PHASES}
    for name, phase in missed:
        if excuse.get((name, phase)):
            note(f"{name} in {phase}: {excuse[name, phase]}")
    equal([f"{name} in {phase}" for name, phase in missed if not excuse.get((name, phase))], [],
          "rows that no test reaches")


run([every_row_is_reached_or_excused])
