#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tables of docs/performance.md are those of the results in docs/performance.

usage: performance.py SOURCE_ROOT
"""
import pathlib
import sys

from tap import check, equal, run

SOURCE = pathlib.Path(sys.argv[1]).resolve()
sys.path.insert(0, str(SOURCE / "tests/bench"))
import results  # pylint: disable=wrong-import-position

PAGE = (SOURCE / "docs/performance.md").read_text(encoding="utf-8")
MACHINES = results.read_all(SOURCE / "docs/performance")


def tables_are_those_of_the_results():
    check(results.fill_in(PAGE, MACHINES) == PAGE,
          "docs/performance.md differs from the results: run tests/bench/run --tables")


def every_table_of_the_results_is_shown_once():
    shown = results.tables_of(PAGE)
    measured = {row.table for machine in MACHINES for row in machine.rows}
    equal(sorted(shown), sorted(set(shown)), "tables that are shown")
    equal(sorted(measured - set(shown)), [], "tables that are not shown")


def files_are_called_after_their_machines():
    for path in sorted((SOURCE / "docs/performance").glob("*.txt")):
        equal(path.name, results.file_name(results.read(path).machine), "name of a file")


def files_say_when_and_how_idle():
    for machine in MACHINES:
        for table in {row.table for row in machine.rows}:
            check(any(fact.startswith(f"table {table}") for fact in machine.facts),
                  f"{machine.machine}: nothing is said about table {table}")
        check("date" in machine.facts, f"{machine.machine}: no date")


if __name__ == "__main__":
    run([tables_are_those_of_the_results, every_table_of_the_results_is_shown_once,
         files_are_called_after_their_machines, files_say_when_and_how_idle])
