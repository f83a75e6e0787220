#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem.h as Doxygen reads it: the same declarations, with the comments in its form.

usage: doxygen.py HEADER GMEM.7 EXAMPLE.C... > gmem.h

Each module of the header becomes a group. Errnos and examples are those of section 3
of the manual.
"""
import pathlib
import re
import sys
import textwrap

# The source directory may not be ours to write to.
sys.dont_write_bytecode = True

import gmem_header
import returns


class Writer:
    def __init__(self, header):
        self._header = header
        self._names = {page.name: page.kind for page in header.pages}
        self._constants = {name for group in header.constants for name, _, _ in group.rows}
        for page in header.pages:
            if page.kind == "enum":
                self._constants.update(self._texts(page))

    @staticmethod
    def _texts(page):
        """member -> text, of a struct or enum"""
        return dict(page.parameters + gmem_header.enumerators(page))

    def text(self, text):
        """Prose: its names become links"""
        parts = re.split(r"`([^`]+)`", " ".join(text.split()))
        return "".join(f"<code>{self._plain(part)}</code>" if odd else self._linked(part)
                       for part, odd in zip(parts, [False, True] * len(parts)))

    @staticmethod
    def _plain(text):
        """What Doxygen would take for commands, as it is"""
        return re.sub(r"[\\@#%$&<>]", r"\\\g<0>", text)

    def _linked(self, text):
        """Names of the header in a text, and the rest of it"""
        pattern = (r"\*([\w-]+)\*|(@\w+|-E[A-Z0-9]{2,}\b)|\b((?:gmem|GMEM)_\w+)(\(\))?|"
                   r"([^*@gG-]+|.)")
        return "".join(self._word(*match.groups()) for match in re.finditer(pattern, text, re.S))

    def _word(self, emphasis, code, name, call, rest):
        if emphasis:
            return f"<em>{self._plain(emphasis)}</em>"
        if code:
            return f"<code>{self._plain(code.removeprefix('@'))}</code>"
        if not name:
            return self._plain(rest)
        if name in self._names or name in self._constants:
            return rf'\ref {name} "{name}{call or ""}"'
        return self._plain(name + (call or ""))

    def paragraphs(self, parts):
        out = []
        for part in parts:
            items = gmem_header.list_items(part)
            if items:
                out.append(self.table(items))
            elif all(line.startswith(("  ", "\t")) for line in part.split("\n")):
                code = self._linked_lines(textwrap.dedent(part))
                out.append(f"<pre>{code}</pre>")
            else:
                out.append(self.text(part))
        return out

    def _linked_lines(self, text):
        return "<br>".join(self._linked(line).replace("  ", "&nbsp; ") for line in text.split("\n"))

    def table(self, rows):
        """A list of names that are explained"""
        cells = [f"<dt>{name}</dt><dd>{self.text(text)}</dd>" for name, text in rows]
        return "<dl>" + "".join(cells) + "</dl>"

    def comment(self, parts):
        body = "\n\n".join(part for part in parts if part).replace("*/", "*&#47;")
        return "/**\n" + "\n".join(f" * {line}".rstrip() for line in body.split("\n")) + "\n */"

    def errors(self, parts):
        out = [self.text(parts.start())] if parts.start() else []
        for previous, group in zip([None, *parts.groups], parts.groups):
            if group.condition:
                out.append(self.text(f"If one of these is returned, {group.condition}:"))
            elif previous:
                out.append("Otherwise:")
            rows = []
            for names, text in group.errors:
                text = text or " ".join(self._header.general[names[0]])
                rows.append((", ".join(f"-{name}" for name in names), text))
            out.append(self.table(rows))
            out += [self.text(returns.sentence(text)) for text in group.rest]
        return [f"@par Errors\n{out[0]}", *out[1:]] if out else []

    def page(self, page):
        """The comment of a function, callback, struct or enum"""
        keep, facts = gmem_header.split_facts(page)
        out = [f"@brief {self.text(page.brief)}", *self.paragraphs(keep)]
        if page.kind in ("function", "callback", "macro"):
            out.append("\n".join(f"@param {name} {self.text(text)}"
                                 for name, text in page.parameters))
        if page.returns:
            parts = returns.parse(page.returns)
            out.append(f"@return {self.text(parts.success())}")
            out += self.errors(parts)
        if page.name in self._header.examples:
            title, code = self._header.examples[page.name]
            out.append(f"@par Example\n{self.text(title)}\n@code{{.c}}\n{code}\n@endcode")
        if "threads" in facts:
            out.append(f"@par Threads\n{self.text(facts['threads'])}")
        if "source" in facts:
            out.append(f"@par Kernel interface\n{self.text(facts['source'])}")
        if "since" in facts:
            out.append(f"@since {facts['since']}")
        return self.comment(out)

    def members(self, page):
        """The declaration of a struct or enum, each member with its text behind it"""
        texts = self._texts(page)
        lines = []
        for line in page.declaration.split("\n"):
            match = re.match(r"\t[^/]*?\b(\w+)(?:\[.*\])?(?: = \w+)?[;,](?=\s|$)|\t(GMEM_\w+)", line)
            text = texts.get(match[1] or match[2]) if match else None
            if text:
                line = re.sub(r"\s*/\*.*\*/\s*$", "", line) + f" /**< {self.text(text)} */"
            lines.append(line)
        return "\n".join(lines)

    def constants(self, title, declared):
        lines = []
        for line in declared.split("\n"):
            found = re.match(r"(#define GMEM_\w+[ \t]+(.*?))\s*(?:/\*(.*?)\*/)?\s*$", line)
            if found:
                line = f"{found[1]} /**< @brief {self.text(found[3] or title or found[2])} */"
            lines.append(line)
        return "\n".join(lines)

    def module(self, name):
        notes = [note for where, note in self._header.notes if where == name]
        parts = [part for note in notes for part in re.split(r"\n\s*\n", note)]
        return self.comment([f"@defgroup {identifier(name)} {name[0].upper() + name[1:]}",
                             *self.paragraphs(parts), "@{"])


def identifier(module):
    return "module_" + re.sub(r"\W+", "_", module)


def main_page(writer, header):
    parts = [part for part in re.split(r"\n\s*\n", header.title) if part.strip()]
    first, *rest = parts[0].partition(":")[2], *parts[1:]
    out = ["@mainpage libgmem", writer.text(returns.sentence(first))]
    for part in rest:
        rows = re.findall(r"^  (\w[\w ,]*?)  +(.*)$", part, re.M)
        if len(rows) > 10:
            out.append("<dl>" + "".join(
                rf'<dt>\ref {identifier(name)} "{name}"</dt><dd>{writer.text(text)}</dd>'
                for name, text in rows) + "</dl>")
        else:
            out.append(writer.text(part))
    return writer.comment(out + ["@file"]).replace(" * @file", " */\n/** @file gmem.h\n"
                                                   " * @brief The whole API")


def convert(text, header):
    writer = Writer(header)
    pages = iter(header.pages)
    out = [main_page(writer, header), "#include <stddef.h>\n#include <stdint.h>\n#include <sys/uio.h>"]
    inside = []
    for comment, declared in gmem_header.blocks(text):
        heading = re.match(r"/\* -+ (.*?) -+ \*/", comment)
        if heading:
            out += [*inside, writer.module(heading[1])]
            inside = ["/** @} */"]
        elif comment.startswith("/**"):
            page = next(pages)
            out += [writer.page(page),
                    writer.members(page) if page.kind in ("struct", "enum") else declared]
        elif gmem_header.constants_of(declared):
            plain = gmem_header.bare(re.sub(r"^/\*+\n?|\s*\*/$", "", comment))
            title = plain.split("\n\n")[0].rstrip(".:")
            out += [f"/** @name {' '.join(title.split()) or 'Constants'} */\n/** @{{ */",
                    writer.constants(title, declared), "/** @} */"]
        elif re.match(r"\w", declared) and not declared.startswith("extern"):
            out.append(declared)
    return "\n\n".join(out + inside) + "\n"


def main():
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    header = gmem_header.parse(text)
    overview = pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
    header.general = gmem_header.general_errors(overview)
    header.examples = {path.stem: gmem_header.example(path)
                       for path in map(pathlib.Path, sys.argv[3:])}
    sys.stdout.write(convert(text, header))
    return 0


sys.exit(main())
