# SPDX-License-Identifier: MIT
"""What a program's output says: TAP, the Test Anything Protocol."""

import re
from dataclasses import dataclass, field

PLAN = re.compile(r"1\.\.(\d+)\s*(?:#\s*skip\S*\s*(.*))?$", re.I)
POINT = re.compile(r"(not )?ok\b\s*(\d+)?\s*-?\s*(.*)$")
DIRECTIVE = re.compile(r"\s+#\s*(skip|todo)\S*\s*(.*)$", re.I)


@dataclass
class Point:
    """One test of a program."""
    name: str
    result: str        # "passed", "failed" or "skipped"
    reason: str = ""
    seconds: float = 0


@dataclass
class Output:
    """Reads a program's output line by line; judge() has the last word."""
    points: list = field(default_factory=list)
    failing_lines: list = field(default_factory=list)
    plan: int = None
    skipped: str = None   # why the whole program was
    bailed: str = None
    _comments: list = field(default_factory=list)  # since the last test
    _showing: bool = False

    def line(self, text, seconds=0):
        if match := PLAN.match(text):
            self.plan = int(match[1])
            if self.plan == 0:
                self.skipped = match[2] or "no reason given"
        elif match := POINT.match(text):
            self._point(text, match, seconds)
        elif text.startswith("Bail out!"):
            self.bailed = text[9:].strip() or "no reason given"
        elif text.lstrip().startswith("#"):
            # Some programs explain a failure before its line, some after it.
            (self.failing_lines if self._showing else self._comments).append(text)

    def _point(self, text, match, seconds):
        name, result, reason = match[3], "failed" if match[1] else "passed", ""
        if directive := DIRECTIVE.search(" " + name):
            name = name[:max(directive.start() - 1, 0)]
            reason = directive[2] or directive[1].lower()
            # A test that is marked as to do may fail.
            result = "skipped" if directive[1].lower() == "skip" or match[1] else "passed"
        self._showing = result == "failed"
        if self._showing:
            self.failing_lines += [*self._comments, text]
        self._comments = []
        self.points.append(Point(name or str(len(self.points) + 1), result, reason, seconds))

    def judge(self, ending):
        """What is wrong besides failed points, or None. ENDING: as PID 1 told it."""
        failed = any(p.result == "failed" for p in self.points)
        if ending.startswith("signal"):
            return f"died of {ending}"
        if ending.startswith("limit"):
            return f"still ran after {ending.split()[1]} seconds"
        if not ending.startswith("exit"):
            return ending
        if self.bailed:
            return f"bailed out: {self.bailed}"
        if self.skipped and not self.points and ending in ("exit 77", "exit 0"):
            return None
        if not self.points:
            return f"{ending} without any test line"
        if self.plan is None:
            return "ended without a plan"
        if self.plan != len(self.points):
            return f"planned {self.plan} tests and ran {len(self.points)}"
        if ending != "exit 0" and not failed:
            return f"ended with {ending} though no test failed"
        return None
