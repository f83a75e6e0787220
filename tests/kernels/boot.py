# SPDX-License-Identifier: MIT
"""One boot: follows the console of a machine and tells what happened in it."""

import collections
import re
import time
from dataclasses import dataclass, field

from complaints import KernelLog
from machine import Late, Machine
from tap import Output, Point

GRACE = 30       # seconds PID 1 may take to end a program that is out of time
BOOT_LIMIT = 120  # seconds, at least, for a boot
CONSOLE_TAIL = 15
ESCAPE = re.compile(r"\\x([0-9a-f]{2})")  # /dev/kmsg writes a tab as \x09


@dataclass
class ProgramResult:
    """How one program fared."""
    name: str
    seconds: float = 0
    ending: str = ""         # "exit 0", "signal 6", "limit 300", "no answer"
    trouble: str = ""        # what is wrong besides failed tests
    output: Output = field(default_factory=Output)
    complaints: list = field(default_factory=list)  # kernel log lines
    console: list = field(default_factory=list)     # the last lines, if it went wrong

    def points(self):
        """Its tests, and one more for whatever else went wrong."""
        points = list(self.output.points)
        if self.trouble:
            points.append(Point("(program)", "failed", self.trouble))
        elif self.output.skipped is not None:
            points.append(Point("(program)", "skipped", self.output.skipped))
        if self.complaints:
            points.append(Point("(kernel log)", "failed", self.complaints[0]))
        return points

    def count(self, result):
        return sum(p.result == result for p in self.points())


@dataclass
class BootResult:
    """How one kernel fared."""
    boot_seconds: float = 0
    seconds: float = 0
    up: bool = False         # PID 1 was heard of
    programs: list = field(default_factory=list)
    trouble: str = ""        # what kept the machine from coming up or going down well
    complaints: list = field(default_factory=list)  # outside of any program
    console: list = field(default_factory=list)

    def points(self):
        """What belongs to no program."""
        points = []
        if self.trouble:
            points.append(Point("(machine)", "failed", self.trouble))
        if self.complaints:
            points.append(Point("(kernel log)", "failed", self.complaints[0]))
        return points

    def count(self, result):
        own = sum(p.result == result for p in self.points())
        return own + sum(p.count(result) for p in self.programs)


class Boot:
    """Runs PROGRAMS on IMAGE; a watcher is told of each step as it happens."""

    def __init__(self, image, programs, limit, watcher):
        self._image = image
        self._waiting = [p.name for p in programs]
        self._limit = limit
        self._watcher = watcher
        self._result = BootResult()
        self._program = None
        self._log = KernelLog()
        self._tail = collections.deque(maxlen=CONSOLE_TAIL)
        self._partial = ""
        self._done = False

    def run(self, initramfs, log_file=None):
        self._begun = self._step = time.monotonic()
        self._deadline = self._begun + max(self._limit, BOOT_LIMIT)
        with Machine(self._image, initramfs, log_file) as machine:
            try:
                self._follow(machine)
            except Late:
                self._trouble("no answer")
            else:
                if not self._done:
                    self._trouble("the machine went down")
        self._result.seconds = time.monotonic() - self._begun
        return self._result

    def _follow(self, machine):
        while (line := machine.line(self._deadline)) is not None:
            if line.startswith("@@ "):
                word, _, rest = line[3:].partition(" ")
                getattr(self, f"_on_{word}", self._on_error)(rest)
            elif line.strip():
                self._on_kernel(line)

    def _trouble(self, what):
        """The machine stopped talking: in a program, or outside of any."""
        if self._program:
            self._finish_program(what)
        else:
            self._result.trouble = what + ("" if self._result.up else " before the kernel was up")
            self._result.console = list(self._tail)
        for name in self._waiting if self._result.up else []:
            lost = ProgramResult(name, ending="not run", trouble=f"not run: {what}")
            self._result.programs.append(lost)
            self._watcher.ended(lost)
        self._waiting = []

    # ---- what PID 1 says ----

    def _on_boot(self, _rest):
        self._result.up = True
        self._result.boot_seconds = time.monotonic() - self._begun
        self._deadline = time.monotonic() + GRACE
        self._watcher.booted(self._result.boot_seconds)

    def _on_start(self, name):
        self._program = ProgramResult(name)
        self._log = KernelLog(name)
        self._waiting.remove(name)
        self._program_begun = self._step = time.monotonic()
        self._deadline = self._program_begun + self._limit + GRACE
        self._partial = ""

    def _on_part(self, text):
        self._partial += text
        self._watcher.output(text)

    def _on_out(self, text):
        now = time.monotonic()
        self._watcher.output(text + "\n")
        line, self._partial = self._partial + text, ""
        self._tail.append(line)
        self._program.output.line(line, now - self._step)
        self._step = now

    def _on_log(self, text):
        text = ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)
        if not self._log.complaint(text):
            return
        self._tail.append(text)
        where = self._program or self._result
        where.complaints.append(text)

    def _on_end(self, rest):
        _name, _, ending = rest.partition(" ")
        if self._partial:
            self._tail.append(self._partial)
        self._finish_program(ending)
        self._deadline = time.monotonic() + GRACE

    def _finish_program(self, ending):
        program, self._program = self._program, None
        self._log = KernelLog()
        program.seconds = time.monotonic() - self._program_begun
        program.ending = ending
        program.trouble = program.output.judge(ending) or ""
        if program.count("failed"):
            program.console = list(self._tail)
        self._result.programs.append(program)
        self._watcher.ended(program)

    def _on_error(self, text):
        self._tail.append(text)
        self._result.trouble = self._result.trouble or text
        self._result.console = list(self._tail)

    def _on_done(self, _rest):
        self._done = True

    # ---- what the kernel says by itself ----

    def _on_kernel(self, line):
        self._tail.append(line)
        if self._log.complaint(line):
            (self._program or self._result).complaints.append(line)
