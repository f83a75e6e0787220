# SPDX-License-Identifier: MIT
"""What the user sees, and the table for other programs."""

import contextlib
import os
import re
import sys
import threading

import processes

_console = threading.Lock()


def counts(result):
    """"3 passed, 1 failed", leaving out what there is none of."""
    parts = [f"{result.count(r)} {r}" for r in ("passed", "failed", "skipped")
             if result.count(r)]
    return ", ".join(parts) or "nothing ran"


def reasons(program):
    """{reason: names of the tests skipped for it}."""
    found = {}
    for point in program.points():
        if point.result == "skipped":
            found.setdefault(point.reason, []).append(point.name)
    return found


class KernelReport:
    """Tells of one kernel, line by line; or in one piece when several run at once."""

    def __init__(self, image, in_one_piece):
        self._name = image.kernel.name
        self._lines = [] if in_one_piece else None
        self._say("")
        self._say(f"{image.kernel.name}: {image.kernel.about} ({image.version})")

    def _say(self, text):
        if self._lines is None:
            print(text, flush=True)
        else:
            self._lines.append(text)

    def note(self, text):
        """Something that takes long enough to be told at once."""
        if self._lines is None:
            self._say(f"  {text}")
        else:
            with _console:
                print(f"{self._name}: {text}", flush=True)

    def booted(self, seconds):
        self._say(f"  booted in {seconds:.1f} s")

    def output(self, text):
        pass

    def ended(self, program):
        word = "FAILED" if program.count("failed") else \
               "passed" if program.count("passed") else "skipped"
        self._say(f"  {program.name:<28} {word:<8} {counts(program):<36} {program.seconds:6.1f} s")
        for reason, names in reasons(program).items():
            who = names[0] if len(names) == 1 else f"{len(names)} tests"
            self._say("      skipped: " + ("" if who == "(program)" else f"{who}: ") + reason)
        if program.count("failed"):
            self._explain(program)

    def _explain(self, program):
        for line in program.output.failing_lines:
            self._say(f"      {line}")
        if program.trouble:
            self._say(f"      {program.name} {program.trouble}")
        if program.complaints:
            self._quote("the kernel complained:", program.complaints)
        elif program.trouble:
            self._quote("the console's last lines:", program.console)

    def _quote(self, title, lines):
        if not lines:
            return
        self._say(f"      {title}")
        for line in lines:
            self._say(f"      | {line}")

    def finished(self, result):
        """What belongs to the machine rather than to a program."""
        if result.trouble:
            self._say(f"  FAILED: {result.trouble}")
            self._quote("the console's last lines:", result.console)
        self._quote("the kernel complained:", result.complaints)
        if self._lines is not None:
            with _console:
                print("\n".join(self._lines), flush=True)


class Story:
    """Passes on what the programs write; what is done before goes to standard error.

    They write to a console, and so in colour, which goes to a terminal only.
    """

    def __init__(self, out):
        self._out = out
        self._is_plain = not out.isatty() or "NO_COLOR" in os.environ
        self._held = ""
        self._boot = contextlib.ExitStack()

    def output(self, text):
        if self._is_plain:
            text, self._held = without_colors(self._held + text)
        self._out.write(text)
        self._out.flush()

    def note(self, text):
        print(text, file=sys.stderr, flush=True)

    def booting(self, what):
        self._boot.enter_context(processes.telling(self.note, f"booting {what}"))

    def booted(self, _seconds=None):
        self._boot.close()

    def ended(self, program):
        pass


def without_colors(text):
    """TEXT without escape sequences, and the beginning of one at its end, which may go on."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    begun = re.search(r"\x1b(\[[0-9;]*)?$", text)
    return (text[:begun.start()], text[begun.start():]) if begun else (text, "")


def table(outcomes):
    """One row a kernel. OUTCOMES: [(kernel name, BootResult, or why there is none)]."""
    print(f"\n{'kernel':<24}{'programs':>9}{'passed':>8}{'failed':>8}{'skipped':>8}"
          f"{'boot s':>8}{'all s':>8}")
    for name, result in outcomes:
        if isinstance(result, str):
            print(f"{name:<24}  {result}")
            continue
        print(f"{name:<24}{len(result.programs):>9}{result.count('passed'):>8}"
              f"{result.count('failed'):>8}{result.count('skipped'):>8}"
              f"{result.boot_seconds:>8.1f}{result.seconds:>8.1f}")


def closing_line(outcomes):
    """Prints the totals; returns the number of failures."""
    results = [r for _, r in outcomes if not isinstance(r, str)]
    total = {w: sum(r.count(w) for r in results) for w in ("passed", "failed", "skipped")}
    print(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped",
          flush=True)
    return total["failed"]


def write_tsv(path, outcomes):
    """Every test of every program on every kernel, tab-separated."""
    with open(path, "w") as file:
        _row(file, "kernel", "program", "test", "result", "reason", "seconds")
        for name, result in outcomes:
            if isinstance(result, str):
                _row(file, name, "", "", "gone", result, "")
                continue
            for point in result.points():
                _row(file, name, "", point.name, point.result, point.reason, "")
            for program in result.programs:
                for point in program.points():
                    _row(file, name, program.name, point.name, point.result,
                         point.reason, f"{point.seconds:.2f}")


def _row(file, *fields):
    file.write("\t".join(" ".join(f.split()) for f in fields) + "\n")
