#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The scripts for bpftrace tell what a program does that does just that.

usage: scripts.py TRACED SCRIPT.bt...             here, as root
       scripts.py --kernel KERNEL TRACED SCRIPT.bt...   in an emulated machine (tests/kernels)

TRACED does what the scripts ask about, on a scripted kernel. bpftrace comes from Debian.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "abi"))
from tap import Skip, check, run  # noqa: E402

KERNEL = None
ARGUMENTS = sys.argv[1:]
if ARGUMENTS[0] == "--kernel":
    KERNEL, ARGUMENTS = ARGUMENTS[1], ARGUMENTS[2:]
TRACED = pathlib.Path(ARGUMENTS[0]).resolve()
SCRIPTS = {path.stem: path for path in map(pathlib.Path, ARGUMENTS[1:])}
ACTS = {"who-converts": "converts", "what-faults": "faults", "what-populates": "populates",
        "how-long-changes-wait": "waits", "which-peer-is-slow": "peers"}
TREE = pathlib.Path(__file__).resolve().parent.parent.parent

# In the machine: each script, and what it is about
INSIDE = """
cd /f
export PATH=/bin:/f
mkdir -p /sys/kernel/tracing /lib64
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ln -s /f/ld-linux-x86-64.so.2 /lib64/ld-linux-x86-64.so.2
export LD_LIBRARY_PATH=/f BPFTRACE_NO_USER_SYMBOLS=1
for pair in %s; do
	script=${pair%%:*}
	echo "=== $script"
	# It starts the program once all probes are there, and ends with it.
	/f/bpftrace -c "/f/traced ${pair#*:}" /f/$script.bt >/tmp/out 2>&1
	echo "bpftrace ended with status $?"
	cat /tmp/out
done
echo "=== end"
"""


def aimed(script, program, directory):
    """A copy of the script that traces @program instead of the installed library"""
    text = SCRIPTS[script].read_text()
    text, count = re.subn(r"usdt:[^:]+:libgmem:", f"usdt:{program}:libgmem:", text)
    check(count >= 1, "probes in the script")
    path = pathlib.Path(directory, script + ".bt")
    path.write_text(text)
    return path


def libraries(*programs):
    found = set()
    for program in programs:
        text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        found |= set(re.findall(r"(/\S+\.so\S*) \(", text))
    return sorted(os.path.realpath(path) + "|" + os.path.basename(path) for path in found)


def in_a_machine():
    """The output of all scripts, by name"""
    bpftrace = shutil.which("bpftrace")
    with tempfile.TemporaryDirectory() as directory:
        files = [aimed(script, "/f/traced", directory) for script in ACTS]
        for pair in libraries(bpftrace, TRACED):
            path, name = pair.split("|")
            shutil.copy(path, pathlib.Path(directory, name))
            files.append(pathlib.Path(directory, name))
        for program in (bpftrace, TRACED):
            files.append(shutil.copy(program, directory))
        inside = pathlib.Path(directory, "inside")
        inside.write_text(INSIDE % " ".join(f"{script}:{act}" for script, act in ACTS.items()))
        command = [TREE / "tests/kernels/run", "--limit", "580", "--story", KERNEL]
        for path in [*files, inside]:
            command += ["--file", path]
        result = subprocess.run([*command, "--", shutil.which("busybox"), "sh", "/f/inside"], check=False,
                                capture_output=True, text=True, timeout=900)
    parts = re.split(r"^=== (\S+)\r?$", result.stdout, flags=re.M)
    check("end" in parts, "the machine said:", result.stdout[-3000:], result.stderr[-2000:])
    return dict(zip(parts[1::2], parts[2::2]))


def here(script):
    with tempfile.TemporaryDirectory() as directory:
        command = ["bpftrace", "-c", f"{TRACED} {ACTS[script]}", aimed(script, TRACED, directory)]
        return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=180).stdout


OUTPUTS = {}


def output_of(script):
    if not OUTPUTS:
        for program in ["bpftrace", *(["busybox"] if KERNEL else [])]:
            if not shutil.which(program):
                raise Skip(program + " is missing")
        if KERNEL:
            OUTPUTS.update(in_a_machine())
        else:
            can = subprocess.run(["bpftrace", "-e", "BEGIN { exit(); }"], capture_output=True, text=True,
                                 check=False, timeout=60)
            if can.returncode:
                raise Skip("bpftrace cannot trace here: " + can.stderr.strip().splitlines()[0])
    if script not in OUTPUTS:
        OUTPUTS[script] = here(script)
    return OUTPUTS[script]


def has(text, *patterns):
    for pattern in patterns:
        check(re.search(pattern, text, re.M), f"no {pattern} in\n", text)


def who_converts_counts_by_thread_and_direction():
    has(output_of("who-converts"), r"^@to_private\[traced, \d+\]: 3$", r"^@to_private_bytes\[traced, \d+\]: 131072$",
        r"^@to_shared\[traced, \d+\]: 2$", r"^@to_shared_bytes\[traced, \d+\]: 32768$",
        r"^@refused\[traced, \d+, -2\]: 1$", r"^@bytes_of_a_call")


def what_faults_says_where_and_why():
    text = output_of("what-faults")
    has(text, r"^@wants_private\[traced, \d+\]: 7$", r"^@wants_shared\[traced, \d+\]: 2$",
        r"^@at_MiB\[8\]: 2\s+@at_MiB\[6\]: 7$")


def what_populates_counts_bytes():
    has(output_of("what-populates"), r"^@populated_bytes\[traced, \d+\]: 393216$", r"^@populate_calls\[traced, \d+\]: 2$",
        r"^@discarded_bytes\[traced, \d+\]: 65536$")


def how_long_changes_wait_says_for_what():
    text = output_of("how-long-changes-wait")
    has(text, r"^@us_for_leases_and_pinned_pages:", r"^@waits\[traced, \d+\]: [12]$")
    longest = int(re.search(r"^@longest_us\[traced, \d+\]: (\d+)$", text, re.M).group(1))
    check(90000 <= longest < 10000000, f"{longest} us:\n", text)


def which_peer_is_slow_names_the_slow_one_and_the_mute_one():
    text = output_of("which-peer-is-slow")
    mute = re.findall(r"^@has_not_answered_since_second\[\d+, (\d+)\]: \d+$", text, re.M)
    slow = re.findall(r"^@answers\[\d+, (\d+)\]: [3-9]$", text, re.M)
    check(len(mute) == 1 and len(slow) == 1 and mute != slow, text)
    for name in ("average", "longest"):
        time_us = int(re.search(rf"^@{name}_us\[\d+, {slow[0]}\]: (\d+)$", text, re.M).group(1))
        check(45000 <= time_us < 10000000, f"{time_us} us:\n", text)


def every_script_is_tried():
    check(sorted(SCRIPTS) == sorted(ACTS), f"{sorted(SCRIPTS)}")


run([
    every_script_is_tried,
    who_converts_counts_by_thread_and_direction,
    what_faults_says_where_and_why,
    what_populates_counts_bytes,
    how_long_changes_wait_says_for_what,
    which_peer_is_slow_names_the_slow_one_and_the_mute_one,
])
