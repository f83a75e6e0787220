# SPDX-License-Identifier: MIT
"""Rows that the benches record, the files that keep them, and the tables made of them.

A file of results is what one machine had to say: lines of "key: value", an empty line,
and then the rows, fields separated by tabs. docs/performance.md has one column of each
table for each file in docs/performance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
PAGE = TREE / "docs/performance.md"
DIRECTORY = TREE / "docs/performance"
PEER = "vm-memory"
# Parts of a name that make a line of docs/performance.md, by the table or how the name begins
PARTS = {"nofault": 2, "slots/add": 2, "slots/remove": 2, "load": 4, "save": 4}
MOST_PARTS = 3

SECTION = re.compile(r"(<!-- rows: ([a-z0-9 ]+) -->\n).*?(<!-- end of rows -->)", re.S)


@dataclass(frozen=True)
class Row:
    """What the library was compared with, as bench.c writes it."""
    name: str
    base: str      # what it is compared with, or the unit of an amount
    median: float  # the library's time as a share of the base's, or the amount
    least: float
    most: float
    goal: float | None
    own: str       # the library's own figure, with its unit

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.base

    @property
    def table(self) -> str:
        return self.name.partition("/")[0]

    @property
    def missed_by(self) -> float:
        """Above 1 if the goal is missed, 0 if there is none."""
        return self.median / self.goal if self.goal else 0.0


def absent(line: str) -> tuple[str, str] | None:
    """(name, reason) if LINE says that a row cannot be had."""
    name, what, why = (line.rstrip("\n") + "\t\t").split("\t", 2)
    return (name, why.strip()) if what == "absent" else None


def is_in(name: str, prefixes: Iterable[str]) -> bool:
    """Is NAME one of PREFIXES, or does it continue one?"""
    return any(name == prefix or name.startswith(prefix + "/") for prefix in prefixes)


def parse_row(line: str) -> Row:
    name, base, median, least, most, goal, own, unit = line.rstrip("\n").split("\t")
    if not all(math.isfinite(float(figure)) for figure in (median, least, most)):
        raise ValueError(f"{name}: {median} ({least}-{most}) was not measured")
    return Row(name, base, float(median), float(least), float(most),
               None if goal == "-" else float(goal),
               "" if own == "-" else f"{own} {unit}")


def show_row(row: Row) -> str:
    """The row as a line for people."""
    figure = f"{number(row.median)} ({number(row.least)}-{number(row.most)})"
    of = f"of {row.base}" if row.own else row.base
    goal = "" if row.goal is None else f", goal {row.goal:g}"
    missed = f", missed by {row.missed_by:.2f}" if row.missed_by > 1 else ""
    return f"{row.name:<38} {row.own:>12}  {figure:<19} {of}{goal}{missed}"


def number(value: float) -> str:
    """Three digits that mean something"""
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


# ---- files ----

@dataclass
class Results:
    """What one machine had to say."""
    facts: dict[str, str]
    lines: dict[tuple[str, str], str]  # as bench.c wrote them

    @property
    def rows(self) -> list[Row]:
        return [parse_row(line) for line in self.lines.values()]

    @property
    def machine(self) -> str:
        return self.facts["machine"]

    def heading(self, tables: list[str]) -> str:
        """The machine, and whether it had other work while it measured TABLES"""
        busy = any("NOT IDLE" in value for fact, value in self.facts.items()
                   if fact.startswith("table ") and fact.split()[1] in tables)
        return self.machine + (" (not idle)" if busy else "")

    def add(self, line: str) -> Row:
        row = parse_row(line)
        self.lines[row.key] = line.rstrip("\n")
        return row

    def text(self) -> str:
        facts = [f"{key}: {value}" for key, value in self.facts.items()]
        return "\n".join([*facts, "", *self.lines.values()]) + "\n"

    def leave_out(self, what: str, why: str) -> None:
        """A table, or the rows whose names begin like this"""
        self.facts[f"left out {what}"] = why

    def left_out(self) -> list[str]:
        return [fact.removeprefix("left out ") for fact in self.facts if fact.startswith("left out ")]

    def about(self, table: str) -> dict[str, str]:
        start = re.compile(rf"(table|left out) {table}\b")
        return {fact: value for fact, value in self.facts.items() if start.match(fact)}

    def lines_of(self, table: str) -> dict[tuple[str, str], str]:
        return {key: line for key, line in self.lines.items() if key[0].partition("/")[0] == table}

    def replace(self, fresh: Results, table: str, has_peer: bool) -> None:
        """Take what FRESH has measured of TABLE; what it could not measure stays."""
        new = fresh.lines_of(table)
        if not new:
            return
        old = {key: line for key, line in self.lines_of(table).items()
               if not has_peer and key[1].startswith(PEER)}
        self.forget(table)
        self.lines |= old | new
        self.facts |= fresh.about(table)

    def forget(self, table: str) -> None:
        """The rows and facts of a table that is measured again."""
        for key in self.lines_of(table):
            del self.lines[key]
        for fact in self.about(table):
            del self.facts[fact]


def read(path: Path) -> Results:
    head, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    facts = dict(line.split(": ", 1) for line in head.splitlines())
    results = Results(facts, {})
    for line in body.splitlines():
        results.add(line)
    return results


def read_all(directory: Path = DIRECTORY) -> list[Results]:
    """Those of all machines; real ones first."""
    found = [read(path) for path in sorted(directory.glob("*.txt"))]
    return sorted(found, key=lambda results: "emulated" in results.machine)


def file_name(machine: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", machine.lower()).strip("-") + ".txt"


# ---- tables ----

Line = tuple[str, str]


def line_of(row: Row) -> Line:
    """The line of the table in which ROW is: what is measured, and against what."""
    count = next((count for start, count in PARTS.items() if is_in(row.name, [start])), MOST_PARTS)
    return "/".join(row.name.split("/")[:count]), row.base


def worst(rows: Iterable[Row]) -> Row:
    return max(rows, key=lambda row: (row.missed_by, row.median))


def cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    row = worst(rows)
    text = f"{number(row.median)} ({number(row.least)}-{number(row.most)})"
    return f"**{text}**" if row.missed_by > 1 else text


def goal_of(rows: list[Row]) -> str:
    """Goals may change between machines measured at different times; the latest counts."""
    goals = [row.goal for row in rows if row.goal is not None]
    return f"{goals[-1]:g}" if goals else ""


def label(row: Row) -> str:
    """What a line measures: an amount says in which unit."""
    return row.base if row.own else f"({row.base})"


def table(names: list[str], machines: list[Results]) -> str:
    """The tables called NAMES as one of Markdown, with a column for each machine."""
    by_machine: list[dict[Line, list[Row]]] = []
    lines: dict[Line, list[Row]] = {}
    for results in machines:
        mine: dict[Line, list[Row]] = {}
        for row in results.rows:
            if row.table in names:
                mine.setdefault(line_of(row), []).append(row)
                lines.setdefault(line_of(row), []).append(row)
        by_machine.append(mine)
    shown = [(results, mine) for results, mine in zip(machines, by_machine) if mine]

    head = ["row", "compared with", "goal", *(results.heading(names) for results, _ in shown)]
    text = [head, ["---"] * len(head)]
    for line, rows in sorted(lines.items(), key=lambda item: names.index(item[1][0].table)):
        text.append([f"`{line[0]}`", label(rows[0]), goal_of(rows),
                     *(cell(mine.get(line, [])) for _, mine in shown)])
    return "".join("| " + " | ".join(fields) + " |\n" for fields in text)


def fill_in(page: str, machines: list[Results]) -> str:
    """PAGE with the tables between its markers made anew."""
    def section(match: re.Match[str]) -> str:
        return match[1] + "\n" + table(match[2].split(), machines) + "\n" + match[3]

    return SECTION.sub(section, page)


def tables_of(page: str) -> list[str]:
    """Names of the tables that PAGE shows"""
    return [name for match in SECTION.finditer(page) for name in match[2].split()]
