#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem-sandbox(7), and the same as data for those who build sandboxes, from one table.

usage: sandbox.py TABLE PAGE.IN HEADER.IN DIRECTORY

Writes into DIRECTORY, of the table and of two templates:
  gmem-sandbox.7          the manual
  gmem-sandbox.h          a filter for C programs
  ARCHITECTURE-PHASE.policy   minijail's policy files
  ARCHITECTURE.json       filters for seccompiler, of rust-vmm and of Firecracker
"""
import dataclasses
import json
import pathlib
import re
import sys

PHASES = ("setup", "layout", "running", "convert", "share", "import", "snapshot")
ARCHITECTURES = ("x86_64", "arm64")
# Newer than the headers of some distributions; the number is the same everywhere.
NEW = {"cachestat": 451}


@dataclasses.dataclass
class Row:
    name: str
    architectures: tuple
    phases: tuple
    purpose: str
    number: int = 0     # of a request


@dataclasses.dataclass
class Table:
    calls: list
    requests: list


def read_row(line, path, number):
    match = re.fullmatch(r"(\w+)(?: (x86_64|arm64))?(?: = (0x[0-9a-f]+))? \| ([a-z ]+) \| (\S.*)", line)
    phases = match and (PHASES if match[4] == "all" else tuple(match[4].split()))
    if not match or not set(phases) <= set(PHASES):
        sys.exit(f"{path}:{number}: no row: {line}")
    return Row(match[1], (match[2],) if match[2] else ARCHITECTURES,
               tuple(phase for phase in PHASES if phase in phases), match[5], int(match[3] or "0", 16))


def read_table(path):
    table, into = Table([], []), None
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line in ("calls:", "requests:"):
            into = getattr(table, line[:-1])
        elif line and not line.startswith("#"):
            into.append(read_row(line, path, number))
    return table


def chosen(rows, architecture, phase):
    return [row for row in rows if architecture in row.architectures and phase in row.phases]


# ---- the manual ----

def mdoc(text):
    """Marks up functions, paths and constants, each on a line of its own."""
    words = [(r"(\w+)\(\)(\S*)", "Fn"), (r"(?<!\S)(/[\w/]+)([,;]?)", "Pa"),
             (r"\b((?:GMEM|RLIMIT|SIG)_?[A-Z_]+)([,;]?)", "Dv")]
    for pattern, macro in words:
        text = re.sub(pattern, lambda m, macro=macro: f"\n.{macro} {m[1]} {m[2]}".rstrip() + "\n", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def manual_rows(rows, macro):
    for row in rows:
        phases = "all" if row.phases == PHASES else " ".join(row.phases)
        yield f".It {macro} {row.name}\n.Em {phases} :\n{mdoc(row.purpose)}"


def fill(template, **parts):
    """Replaces the lines @NAME@."""
    for name, lines in parts.items():
        template = re.sub(rf"^@{name}@$", lambda match, text="\n".join(lines): text, template, flags=re.M)
    return template


def manual(table, template):
    return fill(template, CALLS=manual_rows(table.calls, "Cm"), REQUESTS=manual_rows(table.requests, "Dv"))


# ---- C ----

def guard(row, line):
    if len(row.architectures) == len(ARCHITECTURES):
        return [line]
    macro = {"x86_64": "__x86_64__", "arm64": "__aarch64__"}[row.architectures[0]]
    return [f"#ifdef {macro}", line, "#endif"]


def header(table, template):
    def mask(row):
        return "GMEM_SANDBOX_ALL" if row.phases == PHASES else \
            " | ".join(f"GMEM_SANDBOX_{phase.upper()}" for phase in row.phases)

    phases = [f"\tGMEM_SANDBOX_{phase.upper()} = 1 << {bit}," for bit, phase in enumerate(PHASES)]
    calls, requests = [], []
    for row in table.calls:
        number = str(NEW.get(row.name, f"__NR_{row.name}"))
        calls += guard(row, f"\t{{ {number}, {mask(row)}, \"{row.name}\" }},")
    for row in table.requests:
        requests += guard(row, f"\t{{ {row.number:#x}, {mask(row)}, \"{row.name}\" }},")
    return fill(template, PHASES=phases, CALLS=calls, REQUESTS=requests)


# ---- minijail ----

def policy(table, architecture, phase):
    yield f"# libgmem's calls in the phase {phase} on {architecture}, gmem-sandbox(7)."
    for row in chosen(table.calls, architecture, phase):
        if row.name != "ioctl":
            yield f"{row.name}: 1"
    requests = chosen(table.requests, architecture, phase)
    if requests:
        for row in requests:
            yield f"# {row.name} {row.number:#x}"
        yield "ioctl: " + " || ".join(f"arg1 == {row.number:#x}" for row in requests)


# ---- seccompiler ----

def rules(table, architecture, phase):
    for row in chosen(table.calls, architecture, phase):
        if row.name != "ioctl":
            yield {"syscall": row.name, "comment": row.purpose}
    for row in chosen(table.requests, architecture, phase):
        yield {"syscall": "ioctl", "args": [
            {"index": 1, "type": "dword", "op": "eq", "val": row.number, "comment": row.name}]}


def filters(table, architecture):
    text = []
    for phase in PHASES:
        lines = ",\n".join("    " + json.dumps(rule) for rule in rules(table, architecture, phase))
        text.append(f'  "{phase}": {{ "default_action": "kill_process", "filter_action": "allow", "filter": [\n'
                    f"{lines}\n  ]}}")
    return "{\n" + ",\n".join(text) + "\n}\n"


def main():
    source, page, c_header, directory = map(pathlib.Path, sys.argv[1:])
    table = read_table(source)
    made = {"gmem-sandbox.7": manual(table, page.read_text(encoding="utf-8")),
            "gmem-sandbox.h": header(table, c_header.read_text(encoding="utf-8"))}
    for architecture in ARCHITECTURES:
        made[f"{architecture}.json"] = filters(table, architecture)
        for phase in PHASES:
            made[f"{architecture}-{phase}.policy"] = "\n".join(policy(table, architecture, phase)) + "\n"
    for name, text in made.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
