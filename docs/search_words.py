#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Has the search of Doxygen's pages find a name by each of its words.

usage: search_words.py DIRECTORY

Doxygen's search finds names by their beginning, and all of ours begin with gmem_: what
"discard" is for would not find gmem_vm_discard().
"""
import pathlib
import re
import sys

# An entry: ['gmem_5fvm_5fdiscard_298',['gmem_vm_discard',[...]]], and _5f is an underscore
ENTRY = re.compile(r"^\s*\['(.*?)_(\d+)',(\['(.*?)',.*\])\],?$", re.M)


def later_words(name):
    """vm_discard and discard, of gmem_vm_discard"""
    if re.match(r"gmem_\w+$", name, re.I):
        while "_" in name:
            name = name.partition("_")[2].lower()
            yield name


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    directory = pathlib.Path(sys.argv[1]) / "search"
    letters = re.search(r'^  0: "(.*)"', (directory / "searchdata.js").read_text(encoding="utf-8"),
                        re.M)[1]
    files = {letter: directory / f"all_{number:x}.js" for number, letter in enumerate(letters)}
    entries = {letter: [match.groups()[:3] for match in ENTRY.finditer(path.read_text(encoding="utf-8"))]
               for letter, path in files.items()}
    number = 10000
    for _, _, places in [entry for found in entries.values() for entry in found]:
        for words in later_words(re.match(r"\['(.*?)'", places)[1]):
            if words[0] in entries:
                entries[words[0]].append((words.replace("_", "_5f"), str(number), places))
                number += 1
    for letter, path in files.items():
        lines = [f"  ['{key}_{number}',{places}]" for key, number, places in
                 sorted(entries[letter], key=lambda entry: (entry[0], int(entry[1])))]
        path.write_text("var searchData=\n[\n" + ",\n".join(lines) + "\n];\n", encoding="utf-8")
    return 0


sys.exit(main())
