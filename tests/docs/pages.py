#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""README and docs/*.md: their code compiles, their links lead somewhere.

usage: pages.py SOURCE_ROOT COMPILER...

A block marked c is a whole file if it has an #include or defines a function,
else the body of a function that is given what given.h declares. A block marked
diff must compile both before and after, each of its hunks as such a block. A
comment directly above a block declares what else it is given:

    <!-- given: extern struct device *device; -->
"""
import dataclasses
import functools
import pathlib
import re
import subprocess
import sys
import tempfile
import unicodedata

from tap import check, equal, note, run

SOURCE = pathlib.Path(sys.argv[1]).resolve()
COMPILER = sys.argv[2:]
HERE = pathlib.Path(__file__).resolve().parent
DOCS = SOURCE / "docs"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "-Wno-unused-parameter",
            "-Wno-unused-function", "-Wno-unused-but-set-variable", "-Wno-unused-label"]

# Two screens: what a reader sees before deciding
README_LINES = 80
README_WIDTH = 144


@dataclasses.dataclass
class Block:
    page: pathlib.Path
    line: int
    language: str
    given: str
    text: str

    def where(self):
        return f"{self.page.relative_to(SOURCE)}:{self.line}"


@functools.lru_cache(maxsize=None)
def pages():
    return [SOURCE / "README.md", *sorted(SOURCE.glob("docs/*.md")),
            *sorted(SOURCE.glob("examples/**/*.md")), *sorted(SOURCE.glob("tests/**/*.md"))]


def blocks(*languages):
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"(?:^<!-- given:(.*?)-->\n)?^```(\w*)[^\n]*\n(.*?)^```$",
                                 text, re.S | re.M):
            line = text.count("\n", 0, match.start(3)) + 1
            found.append(Block(page, line, match[2], match[1] or "", match[3]))
    return [block for block in found if block.language in languages]


def is_file(code):
    return re.search(r"^\s*#include|^[a-z_][^;={}]*\)\s*\n?\{", code, re.M)


def program(block, code):
    """The block as a translation unit"""
    place = f'#line {block.line} "{block.where().split(":")[0]}"\n'
    head = f'#include "given.h"\n{block.given}\n{place}'
    if is_file(code):
        return head + code
    return f"{head}int block(void) {{\n{place}{code}\nreturn 0; }}\nint block(void);\n"


def trouble(block, code):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "block.c"
        path.write_text(program(block, code), encoding="utf-8")
        result = subprocess.run([*COMPILER, "-std=gnu11", "-D_GNU_SOURCE", *WARNINGS,
                                 "-fsyntax-only", f"-I{SOURCE}/include", f"-I{HERE}", str(path)],
                                capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else f"{block.where()}:\n{result.stderr}"


def hunks(text):
    return [hunk for hunk in re.split(r"^(?:@@|diff |index |--- |\+\+\+ ).*\n", text, flags=re.M)
            if hunk.strip()]


def side(hunk, mark):
    """A hunk before ("-") or after ("+")"""
    return "".join(line[1:] for line in hunk.splitlines(keepends=True)
                   if line[:1] in (" ", "\t", mark) or line == "\n")


def every_block_of_C_compiles():
    found = blocks("c")
    check(found, "no block marked c")
    note(f"{len(found)} blocks")
    check(not (said := [t for t in (trouble(b, b.text) for b in found) if t]), "\n".join(said))


def every_diff_compiles_before_and_after():
    said = []
    for block in blocks("diff"):
        for hunk in hunks(block.text):
            check(re.search(r"^[-+]", hunk, re.M), f"{block.where()}: a hunk changes nothing")
            said += [trouble(block, side(hunk, mark)) for mark in "-+"]
    said = [text for text in said if text]
    check(not said, "\n".join(said))


def every_block_says_its_language():
    known = ("c", "cpp", "diff", "sh", "text", "cmake", "meson", "ini", "json", "console", "make",
             "rust")
    for page in pages():
        opening = True
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                if opening:
                    check(line[3:].strip() in known, f"{page.name}:{number}: {line!r} is none of",
                          known)
                opening = not opening
        check(opening, f"{page.name}: a block does not end")


def anchors(page):
    """What GitHub makes of headings, and of explicit anchors"""
    found = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for heading in re.findall(r"^#+ +(.*?)\s*#*$", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = "".join(c for c in heading
                       if c in " -_" or unicodedata.category(c)[0] in "LN")
        found.add(kept.replace(" ", "-"))
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def every_link_leads_somewhere():
    count = 0
    for page in pages():
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            count += 1
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            check(there.exists(), f"{page.name}: {target} is not there")
            check(SOURCE in [there, *there.parents], f"{page.name}: {target} is outside")
            # They are installed without the rest.
            if (SOURCE / "examples") in page.parents:
                check((SOURCE / "examples") in there.parents, f"{page.name}: {target} is not installed")
            if anchor and there.suffix == ".md":
                check(anchor in anchors(there), f"{page.name}: no heading for {target}")
    check(count, "no links found")


def every_program_in_a_command_is_there():
    """A command such as tests/run, in a block of its own"""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"^(?:    |\$ ?)((?:tests|examples|docs|packaging)/[\w./-]+)", text,
                               re.M):
            check((SOURCE / path).exists(), f"{page.name}: there is no {path}")


def the_index_lists_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in DOCS.iterdir()
             if re.search(r"\.(md|[1-8])$", path.name)} - {"README.md"}
    listed = set(re.findall(r"\]\(([\w.-]+)\)", index))
    equal(sorted(names - listed), [], "pages that docs/README.md does not link to")


def the_README_fits_two_screens():
    lines = (SOURCE / "README.md").read_text(encoding="utf-8").splitlines()
    check(len(lines) <= README_LINES, f"it has {len(lines)} lines, two screens are {README_LINES}")
    wide = [number for number, line in enumerate(lines, 1) if len(line) > README_WIDTH]
    equal(wide, [], f"its lines wider than {README_WIDTH}")


run([
    every_block_of_C_compiles,
    every_diff_compiles_before_and_after,
    every_block_says_its_language,
    every_link_leads_somewhere,
    every_program_in_a_command_is_there,
    the_index_lists_every_page,
    the_README_fits_two_screens,
])
