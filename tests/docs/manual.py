#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The manual: section 3 is whole, every page is well-formed, every reference leads somewhere.

usage: manual.py HEADER MAP DIRECTORY-OF-SECTION-3 PAGE...
"""
import pathlib
import re
import shutil
import subprocess
import sys

from tap import Skip, check, equal, run

HEADER, MAP = (pathlib.Path(path).read_text(encoding="utf-8") for path in sys.argv[1:3])
SECTION3 = {path.stem: path.read_text(encoding="utf-8")
            for path in sorted(pathlib.Path(sys.argv[3]).glob("*.3"))}
FILES = sorted(pathlib.Path(sys.argv[3]).glob("*.3")) + [pathlib.Path(p) for p in sys.argv[4:]]

# Names of pages that are ours to provide
OURS = re.compile(r"^(libgmem|gmem[\w-]*|GMEM_\w+)$")


def exported():
    return re.findall(r"^\s*(gmem_\w+);", MAP, re.M)


def every_function_has_a_page():
    check(len(exported()) > 50, "the map has few names:", exported())
    equal([n for n in exported() if n not in SECTION3], [], "functions without a page")


def every_page_of_a_function_has_its_sections():
    for name in exported():
        text = SECTION3[name]
        for wanted in (rf"^\.Nd \S", r"^\.Sh SYNOPSIS$", rf"^\.Fo {name}$", r"^\.Ss Threads$",
                       r"^\.Sh HISTORY\nSince libgmem \d", r"^\.Xr gmem 7$"):
            check(re.search(wanted, text, re.M), f"{name}.3 has no line {wanted}")
        equal(".Sh RETURN VALUES" in text, '\n.Ft "void"\n' not in text,
              f"{name}.3 says what it returns")


def every_parameter_is_explained():
    for name in exported():
        synopsis, _, rest = SECTION3[name].partition(".Fc")
        for argument in re.findall(r'^\.Fa "(.*)"$', synopsis, re.M):
            if argument == "void":
                continue
            word = re.search(r"(\w+)$", argument)[1]
            check(f"\n.It Fa {word}\n" in rest, f"{name}.3 does not explain {word}")


def the_most_used_functions_have_examples():
    with_examples = [name for name in exported() if "\n.Sh EXAMPLES\n" in SECTION3[name]]
    check(len(with_examples) >= 20, "functions with examples:", with_examples)
    for name in with_examples:
        code = re.search(r"^\.Sh EXAMPLES\n.*?^\.Bd .*?\n(.*?)^\.Ed$", SECTION3[name], re.S | re.M)
        check(code and re.search(rf"\b{name}\(", code[1]), f"the example of {name} does not call it")
        check("\t" not in code[1] and all(len(line) <= 92 for line in code[1].split("\n")),
              f"the example of {name} is too wide")


def every_errno_of_the_header_is_in_ERRORS():
    """All that a "Return:" names, but for what a sentence tells of another call"""
    found = re.findall(r"\n \* Return: ((?:(?!\*/).)*)\*/\s*GMEM_(?:API|INLINE)[^;{]*?\b(gmem_\w+)\(",
                       HEADER, re.S)
    check(len(found) > 100, "functions of the header are not found")
    for returns, name in found:
        returns = re.sub(r"\s*\n \* ?", " ", returns)
        returns = re.sub(r"(without|such as|after|returned) -E\w+", "", returns)
        _, _, errors = SECTION3[name].partition("\n.Sh ERRORS\n")
        for errno in re.findall(r"-(E[A-Z0-9]+)\b(?! included)", returns):
            check(rf"Er \-{errno}" in errors, f"{name}.3 does not explain {errno}")


def errors_of(name):
    """[what is before the list, (errnos, text of an entry), ...] of a page's ERRORS, as text"""
    section = re.search(r"^\.Sh ERRORS\n(.*?)^\.Sh ", SECTION3[name], re.S | re.M)
    text = re.sub(r"^\.(?:Xr|Er|Fa|Dv|Vt|Fn) ", "", section[1] if section else "", flags=re.M)
    start, *entries = re.split(r"^\.It (.*)\n", re.sub(r"^\.(Bl .*|El)\n", "", text, flags=re.M),
                               flags=re.M)
    return [("", start), *zip(entries[::2], entries[1::2])]


def no_sentence_of_ERRORS_is_cut_off():
    for name, page in SECTION3.items():
        for sign in (";;", ", and.", ", or.", "\nand.", "\nor."):
            check(sign not in page, f"{name}.3 has {sign!r}")
        for errnos, text in errors_of(name):
            check(not re.match(r"(and|or|but)\b", text), f"{name}.3 says of {errnos} only {text!r}")


def no_errno_is_hidden_in_the_text_of_another():
    told = r"(without|such as|after|returned|After a failure in one thread,|but)\s\\-E\w+|\\-E\w+\s+included"
    for name in exported():
        for errnos, text in errors_of(name):
            text = re.sub(told, "", re.sub(r"(\\-E\w+) ,", r"\1", text))
            check(r"\-E" not in text, f"{name}.3 hides an errno in that of {errnos}: {text}")


def a_page_whose_errors_are_those_of_another_says_so_under_ERRORS():
    found = re.findall(r"\n \* Return: ((?:(?!\*/).)*)\*/\s*GMEM_(?:API|INLINE)[^;{]*?\b(gmem_\w+)\(",
                       HEADER, re.S)
    for returns, name in found:
        if re.search(r"(^|or )(as gmem_|the errors (of|that) )", re.sub(r"\s*\n \* ?", " ", returns)):
            check("\n.Sh ERRORS\n" in SECTION3[name], f"{name}.3 has no ERRORS")


def every_call_with_what_outlives_a_VM_names_ESTALE():
    """Itself, or a page that its ERRORS refer to"""
    def names(name, seen):
        text = "".join(errnos + text for errnos, text in errors_of(name))
        return "ESTALE" in text or any(
            names(other, seen | {other}) for other in set(re.findall(r"\b(gmem_\w+) 3", text)) - seen
            if other in exported())

    lasting = "view|change|populate|transfer|vcpu|export|peer"
    # They do not ask the VM, or are for its end.
    spared = re.compile(r"_(free|new|end|cancel|result|get_result|complete|fd)$|"
                        r"^gmem_view_(begin|mark_dirty)$")
    for name in exported():
        first = re.search(r'^\.Fa "(.*)"$', SECTION3[name], re.M)
        if first and re.match(rf"struct gmem_({lasting}) \*", first[1]) and not spared.search(name) \
           and '\n.Ft "int"' in SECTION3[name]:
            check(names(name, {name}), f"{name}.3 says nothing of ESTALE")


def every_struct_and_enum_has_a_page():
    names = re.findall(r"^(?:struct|enum) (gmem_\w+) \{", HEADER, re.M)
    check(len(names) > 10, "structs of the header are not found")
    equal([name for name in names if name not in SECTION3], [], "without a page")


def every_constant_is_in_the_index():
    for name in re.findall(r"^#define (GMEM_\w+)[ \t]+\(?[-(\d]", HEADER, re.M):
        if not name.startswith("GMEM_VERSION"):
            check(f"\n.It Dv {name}\n" in SECTION3["libgmem"], f"libgmem.3 lacks {name}")


def every_function_is_in_the_index():
    for name in exported():
        check(f"\n.It Xr {name} 3\n" in SECTION3["libgmem"], f"libgmem.3 lacks {name}")


def every_reference_to_our_pages_leads_somewhere():
    there = {(path.stem, path.suffix[1:]) for path in FILES}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for name, section in re.findall(r"^\.(?:It )?Xr \(? ?([\w-]+) (\d)", text, re.M):
            if OURS.match(name):
                check((name, section) in there, f"{path.name}: no page {name}({section})")


def no_page_has_lint():
    if not shutil.which("mandoc"):
        raise Skip("mandoc is missing")
    result = subprocess.run(["mandoc", "-T", "lint", *map(str, FILES)], capture_output=True,
                            text=True, check=False)
    # Whether other packages' pages are installed here is not ours to say.
    lines = [line for line in (result.stdout + result.stderr).splitlines()
             if "referenced manual not found" not in line and "outdated mandoc.db" not in line]
    equal(lines, [], "what mandoc finds")


def groff_formats_every_page():
    if not shutil.which("groff"):
        raise Skip("groff is missing")
    result = subprocess.run(["groff", "-mandoc", "-Tutf8", "-ww", "-Wbreak", "-z",
                             *map(str, FILES)],
                            capture_output=True, text=True, check=False)
    equal(result.stderr.splitlines(), [], "what groff warns of")


run([
    every_function_has_a_page,
    every_page_of_a_function_has_its_sections,
    every_parameter_is_explained,
    the_most_used_functions_have_examples,
    every_errno_of_the_header_is_in_ERRORS,
    no_sentence_of_ERRORS_is_cut_off,
    no_errno_is_hidden_in_the_text_of_another,
    a_page_whose_errors_are_those_of_another_says_so_under_ERRORS,
    every_call_with_what_outlives_a_VM_names_ESTALE,
    every_struct_and_enum_has_a_page,
    every_constant_is_in_the_index,
    every_function_is_in_the_index,
    every_reference_to_our_pages_leads_somewhere,
    no_page_has_lint,
    groff_formats_every_page,
])
