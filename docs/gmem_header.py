# SPDX-License-Identifier: MIT
"""gmem.h taken apart: for section 3 of the manual, and for the HTML reference."""
import dataclasses
import re
import textwrap


@dataclasses.dataclass
class Constants:
    """#defines that stand together, and the comment above them"""
    title: str
    rows: list          # (name, value, comment)
    module: str


@dataclasses.dataclass
class Page:
    name: str
    kind: str           # function, callback, macro, struct or enum
    brief: str
    parameters: list    # (name, text)
    paragraphs: list
    returns: str
    declaration: str
    module: str

    def text(self):
        parts = [self.brief, *self.paragraphs, self.returns, self.declaration]
        return "\n".join(parts + [text for _, text in self.parameters])


@dataclasses.dataclass
class Header:
    title: str
    pages: list
    constants: list
    notes: list         # (module, comment)
    modules: list
    general: dict = dataclasses.field(default_factory=dict)     # errno -> lines of mdoc
    examples: dict = dataclasses.field(default_factory=dict)    # function -> (title, code)

    def page(self, name):
        return next((page for page in self.pages if page.name == name), None)


DEFINE = re.compile(r"^#define (GMEM_\w+)[ \t]+(.*?)\s*(?:/\*(.*?)\*/)?\s*$", re.M)
IGNORED = ("GMEM_API", "GMEM_CHECKED", "GMEM_H", "GMEM_INLINE", "GMEM_VERSION")


def bare(comment):
    """A comment without its stars and margin"""
    return textwrap.dedent(re.sub(r"^ \* ?", "", comment, flags=re.M)).strip("\n ")


def parse_doc(doc, declared, module):
    head, *rest = bare(doc).split("\n")
    subject, _, brief = head.partition(" - ")
    name = re.search(r"(\w+)(?:\(\))?$", subject.strip()).group(1)
    body = "\n".join(rest)

    parameters = []
    for match in re.finditer(r"^@(\w+|\.\.\.):(.*?)(?=^@|^\s*$|\Z)", body, re.S | re.M):
        parameters.append((match.group(1), " ".join(match.group(2).split())))
    body = re.sub(r"^@(?:\w+|\.\.\.):.*?(?=^@|^\s*$|\Z)", "", body, flags=re.S | re.M)
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", body) if part.strip()]
    returns = [part for part in paragraphs if part.startswith("Return:")]
    return Page(name, kind_of(subject, declared), brief, parameters,
                [part for part in paragraphs if part not in returns],
                " ".join(" ".join(returns).removeprefix("Return:").split()),
                declared, module)


def kind_of(subject, declared):
    for kind in ("struct", "enum"):
        if subject.startswith(kind + " "):
            return kind
    if declared.startswith("typedef"):
        return "callback"
    return "macro" if declared.startswith("#define") else "function"


def blocks(text):
    """The header in pieces: ("doc" | "comment", text, what is declared below it)"""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith('extern "C"'))
    while at < len(lines):
        comment = None
        if lines[at].startswith("/*"):
            end = next(i for i in range(at, len(lines)) if "*/" in lines[i])
            comment = "\n".join(lines[at:end + 1])
            at = end + 1
        start = at
        while at < len(lines) and lines[at].strip() and not lines[at].startswith("/*"):
            if re.search(r"\{$", lines[at]) and not lines[at].startswith("extern"):
                # A body, empty lines and all
                while not lines[at].startswith("}"):
                    at += 1
            at += 1
        declared = "\n".join(lines[start:at])
        if comment or declared:
            yield comment or "", declared
        else:
            at += 1


def parse(text):
    title = bare(re.search(r"/\*\n(.*?)\*/", text, re.S).group(1))
    header = Header(title, [], [], [], [])
    module = ""
    for comment, declared in blocks(text):
        heading = re.match(r"/\* -+ (.*?) -+ \*/", comment)
        inside = re.sub(r"^/\*+\n?|\s*\*/$", "", comment)
        rows = constants_of(declared)
        if heading:
            module = heading[1]
            header.modules.append(module)
        elif comment.startswith("/**"):
            header.pages.append(parse_doc(inside, declared, module))
        elif rows:
            header.constants.append(Constants(bare(inside), rows, module))
        elif comment and not declared:
            header.notes.append((module, bare(inside)))
    return header


def constants_of(declared):
    rows = {}
    for name, value, comment in DEFINE.findall(declared):
        if not name.startswith(IGNORED):
            rows.setdefault(name, (name, value, (comment or "").strip()))
    return list(rows.values())


def list_items(part):
    """(name, text) of lines such as "name: text", further lines of each behind a tab"""
    found = re.findall(r"^([\w*+][\w ]*): (.*(?:\n\t.*)*)$", part, re.M)
    lines = sum(1 + text.count("\n") for _, text in found)
    return found if len(found) > 1 and lines == len(part.split("\n")) else []


def split_facts(page):
    """Paragraphs without the closing facts, and the facts: threads, source, since"""
    keep, facts = [], {}
    for part in page.paragraphs:
        flat = " ".join(part.split())
        if not re.search(r"\bSince: \d", flat):
            keep.append(part)
            continue
        since = re.search(r"Since: (\d[\d.]*\d)\.?", flat)
        facts["since"] = since[1]
        flat = flat.replace(since[0], "").strip()
        threads, _, source = flat.partition("Source: ")
        if threads.strip():
            facts["threads"] = threads.strip()
        if source.strip():
            facts["source"] = source.strip()
    return keep, facts


def enumerators(page):
    """(name, text) of an enum that explains them where they stand"""
    found = re.findall(r"^\s*(GMEM_\w+)(?: = \w+)?,?\s*/\*(.*?)\*/", page.declaration, re.M)
    return [(name, text.strip()) for name, text in found]


def example(path):
    """(title, code) between the marks of an example"""
    text = path.read_text(encoding="utf-8")
    match = re.search(r"^\t/\* EXAMPLE: (.*?) \*/\n(.*?)\n\t/\* END \*/$", text, re.S | re.M)
    title = re.sub(r"\n\t \* ", " ", match[1])
    return title, textwrap.dedent(match[2]).replace("\t", " " * 4)


def general_errors(overview):
    """What gmem(7) says of each errno"""
    found = {}
    for names, text in re.findall(r"^\.It (Er .*)\n((?:(?!\.It|\.El).*\n)+)", overview, re.M):
        for name in re.findall(r"Er (\w+)", names):
            found[name] = text.splitlines()
    return found
