#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The HTML reference: its links lead somewhere, and its search finds what the header has.

usage: reference.py DIRECTORY HEADER MAP
"""
import html.parser
import pathlib
import re
import sys
import urllib.parse

from tap import check, equal, note, run

DIRECTORY = pathlib.Path(sys.argv[1]).resolve()
HEADER, MAP = (pathlib.Path(path).read_text(encoding="utf-8") for path in sys.argv[2:4])


class Reader(html.parser.HTMLParser):
    """Links and anchors of a page, and its text"""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.text = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)

    def handle_data(self, data):
        self.text.append(data)


PAGES = {path: Reader(path) for path in sorted(DIRECTORY.glob("**/*.html"))}


def trouble(page, link):
    """What is wrong with a link on a page, or None"""
    if re.match(r"[a-z]+:", link):
        return None if link.startswith(("https://www.doxygen.org", "javascript:")) else "leads away"
    path, _, anchor = urllib.parse.unquote(link).partition("#")
    there = (page.parent / path).resolve() if path else page
    if not there.exists():
        return "is not there"
    if anchor and there in PAGES and anchor not in PAGES[there].anchors:
        return "has no such anchor"
    return None


def search_results():
    """word -> links, of what the search box looks through"""
    found = {}
    for path in sorted(DIRECTORY.glob("search/all_*.js")):
        text = path.read_text(encoding="utf-8")
        for key, entry in re.findall(r"^\s*\['([^']*)',\[(.*)\]\],?$", text, re.M):
            found[key] = [(path, link) for link in re.findall(r"'(\.\./[^']*)'", entry)]
    return found


def every_link_leads_somewhere():
    links = {(page, link) for page, reader in PAGES.items() for link in reader.links}
    links |= {place for places in search_results().values() for place in places}
    check(len(links) > 1000, "links are not found")
    for planted in ("nowhere.html", "index.html#nowhere", "https://example.org/"):
        check(trouble(DIRECTORY / "index.html", planted), f"{planted} is not found out")
    note(f"{len(links)} links on {len(PAGES)} pages")
    bad = [f"{page.name}: {link} {said}" for page, link in links if (said := trouble(page, link))]
    equal(sorted(bad), [], "links that lead nowhere")


def the_menu_leads_somewhere():
    text = (DIRECTORY / "menudata.js").read_text(encoding="utf-8")
    urls = re.findall(r'url:"([^"]+)"', text)
    check(len(urls) > 5, "the menu is not found")
    equal([url for url in urls if trouble(DIRECTORY / "index.html", url)], [], "dead entries")


def the_search_finds_every_name_of_the_header():
    names = set(re.findall(r"^\s*(gmem_\w+);", MAP, re.M))
    names |= set(re.findall(r"^(?:struct|enum) (gmem_\w+) \{", HEADER, re.M))
    names |= set(re.findall(r"^#define (GMEM_\w+)[ \t]+\(?[-(\d]", HEADER, re.M))
    names = {name for name in names if not name.startswith("GMEM_VERSION")}
    check(len(names) > 200, "names of the header are not found")
    # Doxygen writes _ as _5f, and the number of an entry behind each key.
    found = {re.sub(r"_(\w\w)", lambda m: chr(int(m[1], 16)), re.sub(r"_\d+$", "", key))
             for key in search_results()}
    equal(sorted(name for name in names if name.lower() not in found), [], "names not found")


def the_search_finds_a_name_by_its_words():
    for word, name in (("discard", "gmem_vm_discard"), ("vm_5fdiscard", "gmem_vm_discard_list"),
                       ("private", "GMEM_BACKING_PRIVATE"), ("opts", "gmem_vm_opts")):
        text = "".join(path.read_text(encoding="utf-8") for path in DIRECTORY.glob("search/all_*.js"))
        check(re.search(rf"^  \['{word}\w*',\['{name}',", text, re.M), f"{word!r} does not find {name}")


def the_search_finds_who_returns_an_errno():
    text = "".join(path.read_text(encoding="utf-8") for path in DIRECTORY.glob("search/all_*.js"))
    found = dict(re.findall(r"^  \['(e[a-z0-9]+)_\d+',\['E[A-Z0-9]+',(.*)\],?$", text, re.M))
    check(len(found) > 20, "errnos are not found:", found)
    for errno, name in (("ebusy", "gmem_vm_discard()"), ("einval", "gmem_image_info()"),
                        ("enomsg", "gmem_image_info()")):
        check(f"'{name}'" in found[errno], f"{errno} does not find {name}")


def no_heading_has_nothing_below_it():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        found = re.search(r'<h2 class="groupheader">([^<]*)</h2>\s*(<h2 class="groupheader">|</div><!-- contents)',
                          text)
        check(not found, f"{path.name}: nothing is below {found and found[1]!r}")


def a_page_says_what_the_manual_says():
    text = " ".join("".join(PAGES[DIRECTORY / "group__module__populate__and__discard.html"].text)
                    .split())
    for words in ("give guest memory back to the host", "If one of these is returned, nothing was freed",
                  "-EBUSY somebody holds a lease on it", "gmem_vm_discard(vm, gpa, size"):
        check(words in text, f"nothing says {words!r}")
    check("\\ref" not in text and "@ret" not in text, "a command of Doxygen's is left")


run([
    every_link_leads_somewhere,
    the_menu_leads_somewhere,
    the_search_finds_every_name_of_the_header,
    the_search_finds_a_name_by_its_words,
    the_search_finds_who_returns_an_errno,
    no_heading_has_nothing_below_it,
    a_page_says_what_the_manual_says,
])
