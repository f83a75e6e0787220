#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Doxygen's pages, as a reader wants them.

usage: finish_html.py DIRECTORY

The search finds a name by each of its words, and the functions that return an errno.
Doxygen's finds names by their beginning, and all of ours begin with gmem_: what "discard"
is for would not find gmem_vm_discard(). A heading with nothing below it is left out.
"""
import pathlib
import re
import sys

# An entry: ['gmem_5fvm_5fdiscard_298',['gmem_vm_discard',[...]]], and _5f is an underscore
ENTRY = re.compile(r"^\s*\['(.*?)_(\d+)',(\['(.*?)',.*\])\],?$", re.M)
EMPTY = re.compile(r'<h2 class="groupheader">Detailed Description</h2>\n(?=<h2 class="groupheader">)')
FUNCTION = re.compile(r'<a id="(\w+)"[^>]*></a>\n<h2 class="memtitle">.*?(gmem_\w+)\(\)</h2>'
                      r'(.*?)(?=<a id="\w+"[^>]*></a>\n<h2 class="memtitle">|\Z)', re.S)


def later_words(name):
    """vm_discard and discard, of gmem_vm_discard"""
    if re.match(r"gmem_\w+$", name, re.I):
        while "_" in name:
            name = name.partition("_")[2].lower()
            yield name


def errnos(directory):
    """errno -> places, of all functions under whose errors it is"""
    found = {}
    for path in sorted(directory.glob("group_*.html")):
        for anchor, name, text in FUNCTION.findall(path.read_text(encoding="utf-8")):
            rows = " ".join(re.findall(r"<dt>(-E.*?)</dt>", text))
            for errno in sorted(set(re.findall(r"-(E\w+)", rows))):
                found.setdefault(errno, []).append(f"['../{path.name}#{anchor}',1,'{name}()']")
    return {errno: f"['{errno}',{','.join(places)}]" for errno, places in found.items()}


def finish_search(directory):
    letters = re.search(r'^  0: "(.*)"', (directory / "search/searchdata.js").read_text(encoding="utf-8"),
                        re.M)[1]
    files = {letter: directory / f"search/all_{number:x}.js" for number, letter in enumerate(letters)}
    entries = {letter: [match.groups()[:3] for match in ENTRY.finditer(path.read_text(encoding="utf-8"))]
               for letter, path in files.items()}
    more = [(words, places) for found in entries.values() for _, _, places in found
            for words in later_words(re.match(r"\['(.*?)'", places)[1])]
    more += [(errno.lower(), places) for errno, places in errnos(directory).items()]
    for number, (words, places) in enumerate(more, 10000):
        if words[0] in entries:
            entries[words[0]].append((words.replace("_", "_5f"), str(number), places))
    for letter, path in files.items():
        lines = [f"  ['{key}_{number}',{places}]" for key, number, places in
                 sorted(entries[letter], key=lambda entry: (entry[0], int(entry[1])))]
        path.write_text("var searchData=\n[\n" + ",\n".join(lines) + "\n];\n", encoding="utf-8")


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    directory = pathlib.Path(sys.argv[1])
    finish_search(directory)
    for path in directory.glob("group_*.html"):
        path.write_text(EMPTY.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


sys.exit(main())
