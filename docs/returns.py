# SPDX-License-Identifier: MIT
"""The "Return:" of a function's comment in gmem.h, taken apart: what is returned, and each errno.

A comment says for example

	Return: 0, or -ENOENT there is no region at @gpa, -EMFILE, -EINVAL or -EEXIST as
	gmem_region_add(), or the kernel's own errno: the region is where it was; or
	-ENOTRECOVERABLE the kernel refused to undo, too.
"""
import dataclasses
import re

# What stands between two errnos; "without -EROFS" and "such as -EIO" are part of a sentence.
BOUNDARY = re.compile(r"(; or |; |\. |: |, or |, and |, but |, | or |^)-(E[A-Z0-9]{2,})\b(?! included)")
# What holds for all errnos before it
CONDITION = re.compile(r": ((?:nothing|the region is|the layout is|the rest is|the handlers are|"
                       r"@ret says)\b[^:;.]*)[.;]?$")
# A text that is about all errnos of an enumeration, and not about its last alone
SHARED = re.compile(r"(as|if|for|\(also)\b")
# What comes after the last errno, and is about none of them
REST = re.compile(r",? (?=or the kernel's own errno)|, (?=(?:or )?the errno (?:of|with which)|"
                  r"(?:or|and) (?:whatever errno|every errno of|the errors of|errnos from|its errnos|"
                  r"as gmem_|io_uring_enter))|(?<=[\w)])\. (?=[A-Z])")


@dataclasses.dataclass
class Group:
    errors: list        # ([errno, ...], text or "" where the manual's general one will do)
    rest: list          # sentences after them
    condition: str = ""  # what holds if one of them is returned


@dataclasses.dataclass
class Returns:
    value: str          # what success returns, a sentence
    like: str           # "as gmem_x() ..." in front of the errors, or ""
    groups: list

    def has_errors(self):
        return bool(self.like or self.groups)

    def success(self):
        """A sentence that says what is returned, and that errors are negative"""
        if self.value == self.like or not self.has_errors():
            return sentence(self.value)
        return sentence(self.value + ("; or" if ";" in self.value else ", or") +
                        " a negative errno")

    def start(self):
        """A sentence before the first errno, or """""
        if self.like and self.groups:
            return sentence(self.like).rstrip(".") + ", and:"
        return sentence(self.like) if self.like else ""


def sentence(text):
    text = text.strip(" ,;:.")
    return text[:1].upper() + text[1:] + "."


def head(text):
    """What is returned, and what the errors are like, from the text before the first errno"""
    text = re.sub(r"(?:[,;:]? (?:or|and|but))?[ ,;:]*$", "", text)
    match = re.match(r"(?:(.*?)[,;]? or )?((?:as|the errors (?:of|that)) .*)$", text)
    if match:
        return match[1] or match[2], match[2]
    return text, ""


def pieces(text):
    """(separator, errno, what is said of it) of all errnos, and the text before"""
    marks = list(BOUNDARY.finditer(text))
    if not marks:
        return text, []
    found = []
    for mark, following in zip(marks, marks[1:] + [None]):
        said = text[mark.end():following.start() if following else len(text)]
        found.append((mark[1], mark[2], said.strip()))
    return text[:marks[0].start()], found


def grouped(found):
    group = Group([], [])
    waiting = []
    for separator, errno, said in found:
        if group.condition:
            yield group
            group = Group([], [])
        condition = CONDITION.search(said)
        if condition:
            group.condition = condition[1].strip()
            said = said[:said.rindex(condition[1])].rstrip(": ")
        said, *rest = REST.split(said)
        said = said.strip(" ,.")
        if not said:
            waiting.append((errno, separator))
        elif waiting and (SHARED.match(said) or separator == " or "):
            group.errors.append(([name for name, _ in waiting] + [errno], said))
            waiting = []
        else:
            group.errors += [([name], "") for name, _ in waiting] + [([errno], said)]
            waiting = []
        group.rest += [re.sub(r"^(?:(?:or|and) )?([a-z].*)", r"also \1", part) for part in rest]
        if rest or group.condition:
            group.errors += [([name], "") for name, _ in waiting]
            waiting = []
    group.errors += [([name], "") for name, _ in waiting]
    yield group


def parse(text):
    """What a "Return:" says; its errors are in groups that share a condition"""
    before, found = pieces(text)
    value, like = head(before.strip())
    return Returns(value, like, list(grouped(found)) if found else [])
