#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Section 3 of the manual, out of gmem.h: the two cannot disagree.

usage: man3.py --list HEADER                          names of the pages, one a line
       man3.py HEADER GMEM.7 EXAMPLE.C... DIRECTORY   write them

The date is that of GMEM.7, which also says what an errno means in general. An
EXAMPLE.C has the name of a function, and what is between the two marks in it is
on that function's page: docs/examples/examples.h.

A page for each function, callback, struct and enum that has a kernel-doc
comment, with the constants its text names, and libgmem(3) with all of them.
"""
import pathlib
import re
import sys
import textwrap

# The source directory may not be ours to write to.
sys.dont_write_bytecode = True

import gmem_header
import returns

INDEX = "libgmem"


# ---- writing mdoc ----

WORD = re.compile(r"([(\[]*)(.+?)([)\].,;:?!]*)$")
SENTENCE = re.compile(r"(?<=[.!?])([\"')\]]*)\s+(?=[\"'(\[*`@]*[A-Z])")


def escape(text):
    text = text.replace("\\", "\\e").replace('"', "\\(dq").replace("-", "\\-")
    text = re.sub(r"(?<=[A-Za-z])\\-(?=[a-z])", "-", text)
    return "\\&" + text if text[:1] in (".", "'") else text


def macro_of(word, page, header):
    """The mdoc macro for one word, or None"""
    patterns = (
        (r"@(\w+|\.\.\.)", lambda m: f"Fa {m[1]}"),
        (r"(gmem_\w+|GMEM_\w+)\(\)", lambda m: reference(m[1], page, header)),
        (r"([a-z_]\w*)\(([1-9])\)", lambda m: f"Xr {m[1]} {m[2]}"),
        (r"([a-z_]\w*)\(\)", lambda m: f"Fn {m[1]}"),
        (r"(struct|enum)\0(\w+)", lambda m: f'Vt "{m[1]} {m[2]}"'),
        (r"-(E[A-Z0-9]{3,})", lambda m: f"Er \\-{m[1]}"),
        (r"[A-Z]+[0-9]*_[A-Z0-9_]+\*?|SIG[A-Z]+|NULL", lambda m: f"Dv {m[0]}"),
        (r"\*([\w-]+)\*", lambda m: f"Em {escape(m[1])}"),
        (r"`([^`]+)`", lambda m: 'Ql "' + escape(m[1].replace("\0", " ")) + '\\&"'),
        (r"/(?:dev|proc|sys)/[\w/<>]+", lambda m: f"Pa {m[0]}"),
    )
    for pattern, build in patterns:
        match = re.fullmatch(pattern, word)
        if match:
            return build(match)
    return None


def reference(name, page, header):
    if (page is None or name != page.name) and header.page(name):
        return f"Xr {name} 3"
    return f"Fn {name}"


def sentence_lines(sentence, page, header):
    """Lines of mdoc for one sentence: text, and a line for each macro"""
    # What belongs together is one word: "struct x", and code in backquotes.
    sentence = re.sub(r"\b(struct|enum) (gmem_\w+)", "\\1\0\\2", sentence)
    sentence = re.sub(r"`[^`]+`", lambda m: m[0].replace(" ", "\0"), sentence)
    lines, plain = [], []

    def flush():
        if plain:
            lines.extend(line if line[0] not in ".'" else "\\&" + line for line in
                         textwrap.wrap(" ".join(plain), 76, break_long_words=False,
                                       break_on_hyphens=False))
            plain.clear()

    for word in sentence.split():
        opening, core, closing = WORD.match(word).groups()
        # The parentheses of a call are not punctuation.
        while closing.startswith(")") and core.count("(") > core.count(")"):
            core, closing = core + ")", closing[1:]
        macro = macro_of(core, page, header)
        if macro is None:
            plain.append(escape(word.replace("\0", " ")))
            continue
        flush()
        name, _, arguments = macro.partition(" ")
        lines.append(" ".join(["." + name, *opening, arguments, *closing]))
    flush()
    return lines


def prose(text, page, header):
    lines = []
    for sentence in SENTENCE.sub("\\1\n", " ".join(text.split())).split("\n"):
        lines += sentence_lines(sentence, page, header)
    return lines


def paragraphs(parts, page, header, first=True):
    lines = []
    for part in parts:
        is_literal = all(line.startswith(("  ", "\t")) for line in part.split("\n"))
        items = gmem_header.list_items(part)
        if not first and not is_literal and not items:
            lines.append(".Pp")
        first = False
        if items:
            lines += tagged(items, page, header, "Sy")
        elif is_literal:
            lines += [".Bd -literal -offset indent", *literal(textwrap.dedent(part)), ".Ed"]
        else:
            lines += prose(part, page, header)
    return lines


def literal(text):
    lines = text.replace("\\", "\\e").rstrip("\n").split("\n")
    return ["\\&" + line if line[:1] in (".", "'") else line.rstrip() for line in lines]


def tagged(rows, page, header, macro):
    lines = [".Bl -tag -width Ds"]
    for name, text in rows:
        lines += [f".It {macro} {name}", *prose(text or "see above", page, header)]
    return lines + [".El"]


def argument_list(arguments):
    arguments = " ".join(arguments.split())
    depth, part, parts = 0, "", []
    for character in arguments:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return parts + [part.strip()]


def prototype(page):
    declared = re.sub(r"\bGMEM_(API|CHECKED|INLINE)\b|__attribute__\(\(.*?\)\)", "", page.declaration)
    if page.kind == "function":
        match = re.match(r"\s*(.*?)(\w+)\((.*?)\)\s*[;{]", declared, re.S)
        result = " ".join(match[1].split()) or "int"
        lines = [f'.Ft "{result}"', f".Fo {page.name}"]
        return lines + [f'.Fa "{argument}"' for argument in argument_list(match[3])] + [".Fc"]
    if page.kind == "callback":
        match = re.match(r"\s*typedef (.*?)\(\*(\w+)\)\((.*)\);", declared, re.S)
        lines = [f'.Ft "typedef {" ".join(match[1].split())}"', f".Fo (*{page.name})"]
        return lines + [f'.Fa "{argument}"' for argument in argument_list(match[3])] + [".Fc"]
    if page.kind == "macro":
        return [f".Fn {page.name} " + " ".join(f'"{name}"' for name, _ in page.parameters)]
    return [".Bd -literal", *literal(declared), ".Ed"]


def mentioned(constants, text):
    """Does a text name one of these constants, or all as PREFIX_*?"""
    names = [name for name, _, _ in constants.rows]
    prefixes = re.findall(r"\b(GMEM_\w+_)\*", text)
    return any(re.search(rf"\b{name}\b", text) for name in names) or \
        any(names[0].startswith(prefix) for prefix in prefixes)


def constant_lines(groups, page, header):
    lines = []
    for group in groups:
        title = group.title.split("\n\n")[0].rstrip(".:")
        lines += [".Pp", *prose((title or "Constants") + ":", page, header),
                  ".Bl -tag -width Ds"]
        for name, value, comment in group.rows:
            lines += [f".It Dv {name}", *prose(comment or f"the value {value}", page, header)]
        lines.append(".El")
    return lines


def see_also(page, header):
    names = set(re.findall(r"\b(gmem_\w+|GMEM_OPTS)\b", page.text())) - {page.name}
    names = sorted((name for name in names if header.page(name)), key=str.lower)
    lines = [f".Xr {name} 3 ," for name in names + [INDEX]]
    return [*lines, ".Xr gmem 7"]


def facts_lines(facts, page, header):
    lines = []
    if "threads" in facts:
        lines += [".Ss Threads", *prose(facts["threads"], page, header)]
    if "source" in facts:
        lines += [".Ss Kernel interface", *prose(capitalised(facts["source"]), page, header)]
    return lines


def capitalised(text):
    """The text with a capital at its start, unless it starts with a name as in close(2)"""
    if re.match(r"\w+\([1-9]\)", text):
        return text
    return text[0].upper() + text[1:]


def write_page(page, header, date):
    keep, facts = gmem_header.split_facts(page)
    macro = {"enum": "Dv", "struct": "Va"}.get(page.kind, "Fa")
    lines = top(page.name, date, page.brief)
    lines += [".Sh SYNOPSIS", ".In gmem.h", *prototype(page), ".Sh DESCRIPTION"]
    lines += paragraphs(keep, page, header)
    rows = page.parameters or (gmem_header.enumerators(page) if page.kind == "enum" else [])
    if rows:
        what = {"struct": "The members are:", "enum": "The values are:"}
        if keep:
            lines.append(".Pp")
        lines.append(what.get(page.kind, "The arguments are:"))
        lines += tagged(rows, page, header, macro)
    groups = [group for group in header.constants if mentioned(group, page.text())]
    lines += constant_lines(groups, page, header)
    lines += facts_lines(facts, page, header)
    lines += returns_lines(page, header)
    lines += [".Sh SEE ALSO", *see_also(page, header)]
    if "since" in facts:
        lines += [".Sh HISTORY", f"Since libgmem {facts['since']}."]
    return lines


def returns_lines(page, header):
    """RETURN VALUES, EXAMPLES and ERRORS"""
    parts = returns.parse(page.returns)
    lines = [".Sh RETURN VALUES", *prose(parts.success(), page, header)] if page.returns else []
    if page.name in header.examples:
        title, code = header.examples[page.name]
        lines += [".Sh EXAMPLES", *prose(title, page, header),
                  ".Bd -literal -offset indent", *literal(code), ".Ed"]
    if parts.has_errors():
        lines += [".Sh ERRORS", *errors_lines(parts, page, header)]
    return lines


def errors_lines(parts, page, header):
    lines = prose(parts.start(), page, header)
    for previous, group in zip([None, *parts.groups], parts.groups):
        if group.condition:
            lines += [".Pp", *prose(f"If one of these is returned, {group.condition}:",
                                    page, header)]
        elif previous:
            lines += [".Pp", "Otherwise:"]
        if group.errors:
            lines.append(".Bl -tag -width Er")
        for names, text in group.errors:
            lines.append(".It " + " , ".join(rf"Er \-{name}" for name in names))
            lines += prose(text, page, header) if text else header.general[names[0]]
        if group.errors:
            lines.append(".El")
        for text in group.rest:
            lines += [".Pp", *prose(returns.sentence(text), page, header)]
    return lines


def top(name, date, brief):
    return [
        ".\\\" Generated from gmem.h; do not edit.",
        ".\\\" SPDX-License-Identifier: MIT",
        f".Dd {date}", f".Dt {name.upper()} 3", ".Os", ".Sh NAME", f".Nm {name}",
        f".Nd {escape(brief.rstrip('.'))}",
    ]


def write_index(header, date):
    page = None
    lines = top(INDEX, date, "guest memory for KVM virtual machines: every function")
    lines += [".Sh SYNOPSIS", ".In gmem.h", ".Pp",
              ".Dl cc program.c $(pkg-config \\-\\-cflags \\-\\-libs libgmem)", ".Sh DESCRIPTION"]
    title = re.split(r"\n\s*\n", header.title)
    lines += paragraphs([part for part in title if part.strip()], page, header)
    for module in header.modules:
        lines.append(".Ss " + escape(module[0].upper() + module[1:]))
        notes = [note for where, note in header.notes if where == module]
        parts = [part for note in notes for part in re.split(r"\n\s*\n", note)]
        lines += paragraphs(parts, page, header)
        members = [p for p in header.pages if p.module == module]
        if members:
            lines.append(".Bl -tag -width Ds")
            for member in members:
                lines += [f".It Xr {member.name} 3", *prose(member.brief, page, header)]
            lines.append(".El")
        lines += constant_lines([g for g in header.constants if g.module == module], page, header)
    return lines + [".Sh SEE ALSO", ".Xr gmem 7"]


def tidy(lines):
    """mdoc wants no .Pp right after a heading or before a list ends nothing."""
    kept = []
    for line in lines:
        if line == ".Pp" and kept and kept[-1].startswith((".Sh", ".Ss", ".Pp")):
            continue
        kept.append(line)
    return "\n".join(kept) + "\n"


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--list":
        header = gmem_header.parse(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
        print("\n".join([INDEX] + [page.name for page in header.pages]))
        return 0
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2

    header = gmem_header.parse(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    overview = pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
    header.general = gmem_header.general_errors(overview)
    header.examples = {path.stem: gmem_header.example(path) for path in map(pathlib.Path, sys.argv[3:-1])}
    date = re.search(r"^\.Dd (.*)$", overview, re.M)[1]
    directory = pathlib.Path(sys.argv[-1])
    (directory / f"{INDEX}.3").write_text(tidy(write_index(header, date)), encoding="utf-8")
    for page in header.pages:
        text = tidy(write_page(page, header, date))
        (directory / f"{page.name}.3").write_text(text, encoding="utf-8")
    return 0


sys.exit(main())
