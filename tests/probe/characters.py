#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The characters that are printed as they are: the table in lib/base/utf8.c.

characters.py --print     prints the table, made from Python's copy of the Unicode database
characters.py UTF8.C      checks the table in UTF8.C against that copy; speaks TAP
"""
import pathlib
import re
import sys
import unicodedata

# The version that the table was made from. An assigned character stays one in later versions.
VERSION = (14, 0)
# Above the basic plane only what names have: emoji and pictographs, and ideographs.
MORE = [(0x1f300, 0x1faff), (0x20000, 0x3134f)]
# Graphic characters by their category that are drawn as nothing: Default_Ignorable_Code_Point
INVISIBLE = {0x34f, 0x115f, 0x1160, 0x17b4, 0x17b5, 0x2800, 0x3164, 0xffa0, *range(0x180b, 0x1810),
             *range(0xfe00, 0xfe10)}


def is_graphic(code):
    """Letters, marks, numbers, punctuation, symbols and the plain space"""
    return code == 0x20 or (unicodedata.category(chr(code))[0] in "LMNPS" and code not in INVISIBLE)


def is_wanted(code):
    return is_graphic(code) and (code < 0x10000 or any(start <= code <= end for start, end in MORE))


def ranges():
    start = None
    for code in range(0x110001):
        wanted = code < 0x110000 and is_wanted(code)
        if wanted and start is None:
            start = code
        elif not wanted and start is not None:
            yield start, code - 1
            start = None


def borders():
    """The first of each range, and the first after it"""
    return [border for start, end in ranges() for border in (start, end + 1)]


def print_table():
    row = "\t"
    for border in borders():
        item = f"0x{border:x},"
        if len(row) + 7 + len(item) > 98:
            print(row.rstrip())
            row = "\t"
        row += item + " "
    print(row.rstrip())


def read_table(path):
    text = pathlib.Path(path).read_text(encoding="utf-8").split("borders[] = {")[1].split("};")[0]
    return [int(number, 16) for number in re.findall(r"0x([0-9a-f]+),", text)]


def main():
    import tap  # pylint: disable=import-outside-toplevel

    table = read_table(sys.argv[1])
    allowed = {code for i in range(0, len(table) - 1, 2) for code in range(table[i], table[i + 1])}
    version = tuple(int(part) for part in unicodedata.unidata_version.split(".")[:2])

    def the_table_is_in_order():
        tap.check(len(table) > 100 and len(table) % 2 == 0, len(table))
        tap.equal(sorted(set(table)), table, "borders")

    def only_graphic_characters_are_allowed():
        for code in sorted(allowed):
            known = version >= VERSION or unicodedata.category(chr(code)) != "Cn"
            tap.check(not known or is_graphic(code), hex(code), unicodedata.category(chr(code)))

    def no_control_mark_or_gap_is_allowed():
        for code in (0, 0x1f, 0x7f, 0x80, 0x9b, 0x9f, 0xa0, 0xad, 0x378, 0x61c, 0x200b, 0x200f, 0x2028, 0x2029,
                     *range(0x202a, 0x202f), *range(0x2060, 0x2070), 0xd800, 0xdfff, 0xe000, 0xf8ff,
                     *range(0xfdd0, 0xfdf0), 0xfeff, 0xfff9, 0xfffe, 0xffff, 0x1fffe, 0xe0001, 0xe0020,
                     0xf0000, 0x10ffff):
            tap.check(code not in allowed, hex(code))

    def names_of_all_scripts_are_allowed():
        for code in map(ord, "az AZ09~äßéŁΩЖשعกआ한漢かカ€→█…\u0301\ufffd\U0001f427\U00020bb7"):
            tap.check(code in allowed, hex(code))

    def the_table_is_the_database_that_it_was_made_from():
        if version == VERSION:
            tap.equal(table, borders(), "the table")

    tap.run([the_table_is_in_order, only_graphic_characters_are_allowed, no_control_mark_or_gap_is_allowed,
             names_of_all_scripts_are_allowed, the_table_is_the_database_that_it_was_made_from])


if sys.argv[1:] == ["--print"]:
    print_table()
else:
    main()
