# SPDX-License-Identifier: MIT
"""Every process we start, so that none outlives us."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time


class Problem(Exception):
    """Something this machine lacks, said in one sentence."""


@contextlib.contextmanager
def telling(say, what, every=15):
    """Says what is being done and, while that takes long, that it still is."""
    begun, over = time.monotonic(), threading.Event()

    def remind():
        while not over.wait(every):
            say(f"  still {what.split(',')[0].split('(')[0].strip()}, {time.monotonic() - begun:.0f} s")

    say(f"{what}...")
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        over.set()
        reminder.join()


_running = set()
_guard = threading.Lock()
_stopping = False


def _with_us(command):
    """COMMAND, killed by the kernel should we die without a chance to do it."""
    if shutil.which("setpriv"):
        return ["setpriv", "--pdeathsig", "KILL", "--", *command]
    return command


def start(command, **options):
    """Popen in a process group of its own, which stop_all() ends."""
    command = [str(c) for c in command]
    if not shutil.which(command[0]):
        raise Problem(f"There is no {command[0]} on this machine.")
    with _guard:
        if _stopping:
            raise Problem("interrupted")
        process = subprocess.Popen(_with_us(command), start_new_session=True, **options)
        _running.add(process)
    return process


def stop(process):
    """Ends PROCESS and its children; harmless when they have ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    with _guard:
        _running.discard(process)


def stop_all():
    """Ends everything, and lets nothing new begin."""
    global _stopping
    with _guard:
        _stopping = True
        processes = list(_running)
    for process in processes:
        stop(process)


def run(command, **options):
    """Runs COMMAND; returns (exit status, what it wrote)."""
    process = start(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True, errors="replace", **options)
    try:
        output, _ = process.communicate()
    finally:
        stop(process)
    if _stopping:
        raise Problem("interrupted")
    return process.returncode, output


def must(what, command, **options):
    """Runs COMMAND and returns its output; a Problem with its last lines if it fails."""
    status, output = run(command, **options)
    if status:
        tail = "".join(f"\n    {line}" for line in output.splitlines()[-15:])
        raise Problem(f"Could not {what} ({command[0]} exited with {status}):{tail}")
    return output
