#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tests/layers.py SOURCE ARCHIVE COMPILER... : is lib/ built as docs/architecture.md says?

The table of modules in docs/architecture.md gives the folders, lowest first, and the
modules of each. A module is a header and, unless it is only that, a .c file of the same
name. This checks that

  modules  the table and lib/ agree, every module has a header, every .c a module
  order    no file includes anything above its folder, nor of a neighbour in braces
  circles  no module includes, by way of others, itself
  uses     a file includes the modules whose names it uses, and no others
  alone    every header compiles by itself, and twice
  symbols  no object of ARCHIVE needs a symbol from above its folder, or a circle of them
  kernel   objects need nothing of the C library that makes a system call

and, on copies of lib/ into which a violation of each was planted, that it is found.
ARCHIVE has the objects of all of lib/ but the lowest folder. Prints TAP.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

KERNEL_DOOR = "os"
# What tools share with the library, beside the public header
SHARED_WITH_TOOLS = {"base/crc32c.h", "base/error.h", "base/macros.h", "base/utf8.h", "base/vm_type.h",
                     "transfer/image.h", "transfer/image_unit.h"}
# Names of the kernel's own headers, which are only to be had through these
BRINGS = {"os/kvm_compat.h": r"KVM_\w+|__u\d+"}
# Functions of the C library that work without the kernel, or, like malloc() and the
# mutexes, with it in ways that no caller sees; fprintf() and abort() are for lock checks.
HARMLESS = re.compile(
    r"gmem_|__(start|stop)_gmem_|__(stack_chk_fail|tls_get_addr|errno_location|"
    r"popcountdi2)$|"
    r"_GLOBAL_OFFSET_TABLE_$|__aarch64_|__(mem|str|v?snprintf|fprintf)\w*_chk$|__isoc\d+_strto\w+$|"
    r"mem(cpy|set|cmp|move|chr)$|(__)?explicit_bzero(_chk)?$|str\w+$|v?snprintf$|(m|c|re|aligned_)alloc$|free$|"
    r"pthread_(mutex|cond|condattr)_\w+$|pthread_(create|join|self)$|"
    r"pthread_(key_create|key_delete|getspecific|setspecific)$|sig\w+set$|sigismember$|"
    r"fprintf$|fwrite$|abort$|stderr$|getauxval$|gnu_dev_makedev$|pthread_equal$")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def code(text):
    """@text without comments and strings, which name modules they do not use."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)


def includes(text):
    own = re.findall(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', text, flags=re.M)
    # Ours are in quotes: in brackets they would escape notice.
    return own + re.findall(r"^[ \t]*#[ \t]*include[ \t]+<((?!sys/|linux/|asm/)\w+/\w+\.h)>", text, flags=re.M)


def declared(text):
    """The names that a header brings."""
    text = re.sub(r'^#include.*$', "", code(text), flags=re.M)
    names = set(re.findall(r"^\s*#\s*define\s+(\w+)", text, flags=re.M))
    names |= set(re.findall(r"\b(?:struct|enum|union)\s+(\w+)\s*\{", text))
    names |= set(re.findall(r"\btypedef\b[^;]*?\(\*(\w+)\)", text))
    for body in re.findall(r"\benum\s*\w*\s*\{([^}]*)\}", text):
        names |= set(re.findall(r"^\s*(\w+)", body.replace(",", "\n"), flags=re.M))
    names |= set(re.findall(r"^extern\b[^;]*?(\w+)(?:\[[^;]*)?;", text, flags=re.M))
    names |= set(re.findall(r"\b(gmem_\w+)##", text))
    functions = re.sub(r"\btypedef\b[^;]*;", "", text)
    names |= set(re.findall(r"^[A-Za-z][^;{}()#=]*?\b(\w+)\s*\(", functions, flags=re.M))
    return {n for n in names if not n.endswith("_H") and n != "__attribute__"}


def members(text):
    """The members of the structs that a header defines."""
    bodies = re.findall(r"\bstruct\s+\w+\s*\{(.*?)^\}", code(text), flags=re.S | re.M)
    return {m for body in bodies for m in re.findall(r"(\w+)(?:\[[^\]]*\])?\s*[;,]", body)}


class Tree:
    """The folders and modules of the table, and the files that are there."""

    def __init__(self, root):
        self.root = root
        self.lib = os.path.join(root, "lib")
        self.rank, self.modules = {}, {}
        self.read_table()
        self.files = {}
        for folder in sorted(self.rank):
            place = os.path.join(self.lib, folder)
            for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
                if name.endswith((".c", ".h", ".S")):
                    self.files[f"{folder}/{name}"] = read(os.path.join(place, name))

    def read_table(self):
        text = read(os.path.join(self.root, "docs", "architecture.md"))
        rank = 0
        for line in text.splitlines():
            row = re.match(r"\| `(\w+)/`( \(beside the row above\))? \| `(\w+)` \|", line)
            if not row:
                continue
            folder, beside, module = row.group(1), row.group(2), row.group(3)
            if folder not in self.rank:
                rank += 0 if beside else 1
                self.rank[folder] = rank
            self.modules.setdefault(folder, set()).add(module)

    def all_files(self):
        """Every file below lib/, whatever it is called."""
        for place, _, names in sorted(os.walk(self.lib)):
            for name in sorted(names):
                yield os.path.relpath(os.path.join(place, name), self.lib)

    def module_of(self, path):
        """(folder, module) of a file; assembly belongs to the module its name begins with."""
        folder, name = path.split("/")
        stem, ending = os.path.splitext(name)
        if ending == ".S":
            stem = re.sub(r"_(x86_64|arm64)$", "", stem)
        return folder, stem


def check_modules(tree):
    there = {tree.module_of(path) for path in tree.files}
    told = {(folder, module) for folder, modules in tree.modules.items() for module in modules}
    for folder, module in sorted(there - told):
        yield f"lib/{folder}: module \"{module}\" is not in docs/architecture.md"
    for folder, module in sorted(told - there):
        yield f"docs/architecture.md: there is no module \"{module}\" in lib/{folder}"
    for folder, module in sorted(there):
        if f"{folder}/{module}.h" not in tree.files:
            yield f"lib/{folder}/{module}: the module has no header"
    for path in tree.all_files():
        folder = path.split("/")[0]
        if folder == "tools" or path in ("libgmem.map", "meson.build"):
            continue
        if path not in tree.files:
            yield f"lib/{path}: no source or header of a folder in docs/architecture.md"



def check_order(tree):
    for path, text in tree.files.items():
        folder = path.split("/")[0]
        for header in includes(text):
            if header == "gmem.h":
                continue
            other = header.split("/")[0]
            if header not in tree.files:
                yield f"lib/{path}: \"{header}\" is no module's header"
            elif other != folder and tree.rank[other] >= tree.rank[folder]:
                yield f"lib/{path}: includes {header}, which is not below {folder}/"
    tools = os.path.join(tree.lib, "tools")
    for name in sorted(os.listdir(tools)) if os.path.isdir(tools) else []:
        if not name.endswith((".c", ".h")):
            continue
        for header in includes(read(os.path.join(tools, name))):
            if "/" in header and header not in SHARED_WITH_TOOLS:
                yield f"lib/tools/{name}: includes {header}, which tools do not share"


def check_circles(tree):
    graph = {}
    for path, text in tree.files.items():
        module = "/".join(tree.module_of(path))
        graph.setdefault(module, set()).update(
            h[:-2] for h in includes(text) if h in tree.files and h[:-2] != module)
    return find_circles(graph)


def find_circles(graph):
    done, trail, found = set(), [], []

    def visit(module):
        if module in trail:
            found.append(" -> ".join(trail[trail.index(module):] + [module]))
            return
        if module in done:
            return
        trail.append(module)
        for other in sorted(graph.get(module, ())):
            visit(other)
        trail.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)
    return found


def uses(tree):
    """For each file: the headers it needs, and those it includes."""
    brings = {path: declared(text) for path, text in tree.files.items() if path.endswith(".h")}
    brings["gmem.h"] = declared(read(os.path.join(tree.root, "include", "gmem.h")))
    for path, text in tree.files.items():
        if path.endswith(".S"):
            continue
        bare = re.sub(r"^[ \t]*#[ \t]*include.*$", "", code(text), flags=re.M)
        words = set(re.findall(r"\w+", bare))
        # A pointer that is only handed on needs no more than the struct's name.
        known = set(re.findall(r"\w+", re.sub(r"\bstruct\s+\w+\s*(?=\*|;)", " ", bare)))
        own = os.path.splitext(path)[0] + ".h"
        needed = {h for h, names in brings.items() if h != path and known & names}
        needed |= {h for h, names in BRINGS.items() if h != path and re.search(rf"\b({names})\b", bare)}
        has = includes(text)
        given = set(includes(tree.files[own])) if path.endswith(".c") and own in tree.files else set()
        yield path, own, needed, has, given, brings, words, known


def compiles(tree, compiler, text, warnings=("-w",)):
    run = subprocess.run(
        [*compiler, "-std=gnu11", "-D_GNU_SOURCE", *warnings, "-fsyntax-only", "-I",
         os.path.join(tree.root, "include"), "-I", tree.lib, "-x", "c", "-"],
        input=text, capture_output=True, text=True)
    return run.returncode == 0, run.stderr


def reaches_into(tree, compiler, path, header, named):
    """Does the file use members of a struct of this header, @named there or not?"""
    if header not in tree.files or not path.endswith(".c"):
        return False
    reached = set(re.findall(r"(?:->|\.)\s*(\w+)", code(tree.files[path])))
    if not reached & members(tree.files[header]):
        return False
    without = tree.files[path].replace(f'#include "{header}"\n', "")
    return named or not compiles(tree, compiler, without)[0]


def check_uses(tree, compiler):
    for path, own, needed, has, given, brings, words, known in uses(tree):
        if path.endswith(".c") and own in tree.files and has[:1] != [own]:
            yield f"lib/{path}: does not include its own header first"
        for header in sorted(needed - set(has) - given - {own}):
            name = (sorted(known & brings[header]) + ["names of the kernel"])[0]
            yield f"lib/{path}: uses {name}, but does not include {header}"
        for header in has:
            if (header in brings and header not in needed | {own} and
                    not (words if path.endswith(".h") else known) & brings[header] and
                    not reaches_into(tree, compiler, path, header,
                                     bool(words & brings[header]))):
                # A module that implements the public header alone has nothing to declare.
                if not (path.endswith(".h") and header == "gmem.h"):
                    yield f"lib/{path}: includes {header}, but uses nothing of it"
            if has.count(header) > 1 or (path.endswith(".c") and header in given):
                yield f"lib/{path}: includes {header} twice, or with its own header"


def check_alone(tree, compiler):
    for path in tree.files:
        if not path.endswith(".h"):
            continue
        for checks_locks in ("", "#define GMEM_LOCK_CHECKS\n"):
            good, said = compiles(tree, compiler, checks_locks + f'#include "{path}"\n' * 2,
                                  ("-Wall", "-Wextra", "-Werror"))
            if not good:
                first = (said.strip().splitlines() or ["the compiler failed"])[0]
                yield f"lib/{path}: does not compile alone, or not twice: {first}"
                break


class Objects:
    """The symbols that the objects of an archive define and need, by module."""

    def __init__(self, tree, archive):
        self.defines, self.needs = {}, {}
        said = subprocess.run(["nm", "-P", "-g", archive], capture_output=True, text=True).stdout
        module = None
        for line in said.splitlines():
            member = re.match(r".*\[(?:\S*/)?(\w+?)_(\w+)\.[cS]\.o\]:$", line)
            if member:
                module = "/".join(tree.module_of(f"{member.group(1)}/{member.group(2)}.S"))
            else:
                name, kind = line.split()[:2]
                self.add(module, name, kind)

    def add(self, module, name, kind):
        if kind == "U":
            self.needs.setdefault(module, set()).add(name)
        else:
            self.defines[name] = module

    def take_object(self, module, path):
        """Put one object in the place of a module's own."""
        self.needs[module] = set()
        said = subprocess.run(["nm", "-P", "-g", path], capture_output=True, text=True).stdout
        for line in said.splitlines():
            self.add(module, *line.split()[:2])


def check_symbols(tree, objects):
    if not objects.needs:
        yield "no symbols could be read"
    graph = {}
    for module, names in sorted(objects.needs.items()):
        folder = module.split("/")[0]
        for name in sorted(names):
            other = objects.defines.get(name)
            if not other or other == module:
                continue
            graph.setdefault(module, set()).add(other)
            above = other.split("/")[0]
            if above != folder and tree.rank[above] >= tree.rank[folder]:
                yield f"lib/{module}: needs {name} of lib/{other}, which is not below {folder}/"
    yield from find_circles(graph)


def check_kernel(tree, objects):
    for module, names in sorted(objects.needs.items()):
        for name in sorted(names):
            if module.split("/")[0] != KERNEL_DOOR and not HARMLESS.match(name):
                yield f"lib/{module}: needs {name}(), which is for lib/{KERNEL_DOOR}/"
    for path, text in tree.files.items():
        if re.search(r"\b(syscall|svc #0)\b", text) and not path.startswith(KERNEL_DOOR + "/"):
            yield f"lib/{path}: makes system calls by hand"


def checks(compiler, objects_of):
    return {
        "modules": check_modules,
        "order": check_order,
        "circles": check_circles,
        "uses": lambda tree: check_uses(tree, compiler),
        "alone": lambda tree: check_alone(tree, compiler),
        "symbols": lambda tree: check_symbols(tree, objects_of(tree)),
        "kernel": lambda tree: check_kernel(tree, objects_of(tree)),
    }


# ---- planted violations: what is done to a copy, and the check that must find it ----

def add(path, text, where="#include"):
    def plant(root):
        full = os.path.join(root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        old = read(full) if os.path.exists(full) else ""
        at = old.find(where) if where else -1
        with open(full, "w", encoding="utf-8") as file:
            file.write(old[:at] + text + old[at:] if at >= 0 else old + text)
    return plant


def remove(path):
    return lambda root: os.remove(os.path.join(root, path))


def plant_call(path, call):
    return add(path, f"int gmem_bad(void);\nint gmem_bad(void) {{ return {call}; }}\n", None)


PLANTED = [
    ("a folder that includes a higher one", "order",
     add("lib/base/check.c", '#include "region/file.h"\n')),
    ("an include in brackets, indented", "order",
     add("lib/base/check.c", "  # include <region/file.h>\n")),
    ("a neighbour in braces that is included", "order",
     add("lib/pages/populate.c", '#include "layout/apply.h"\n')),
    ("a tool that includes a module", "order",
     add("lib/tools/gmem-probe.c", '#include "caps/caps.h"\n')),
    ("a module without header", "modules", remove("lib/region/slots.h")),
    ("a module that the map does not have", "modules", add("lib/base/attic.h", "", None)),
    ("a file in no folder", "modules", add("lib/internal.h", "", None)),
    ("a folder in a folder", "modules", add("lib/base/deep/attic.c", "", None)),
    ("a header that does not compile alone", "alone",
     add("lib/region/slots.h", "struct stranger stands_here(struct gmem_odd odd);\n",
         "struct gmem_slots")),
    ("a header without a guard", "alone",
     add("lib/base/utf8.h", "struct twice { int x; };\n", "/* SPDX")),
    ("a circle in one folder", "circles",
     add("lib/region/file_map.h", '#include "region/file.h"\n')),
    ("an include that is not used", "uses",
     add("lib/region/slots.c", '#include "base/crc32c.h"\n', "#include <")),
    ("an include that only seems to be used", "uses",
     add("lib/region/slots.c", '#include "base/part.h"\nstruct own { int start; };\n'
         "static inline int start(struct own *own) { return own->start; }\n", "#include <")),
    ("a name whose module is not included", "uses",
     add("lib/region/slots.c", "static uint64_t gone = sizeof(struct gmem_part);\n", None)),
    ("a call upwards without an include", "symbols",
     add("lib/base/check.c", "int gmem_slots_init();\nint gmem_bad(void);\n"
         "int gmem_bad(void) { return gmem_slots_init(); }\n", None)),
    ("a system call outside os/", "kernel", plant_call("lib/base/check.c", "close(3)")),
    ("a system call by pointer", "kernel",
     plant_call("lib/base/check.c", "(*(int (*)(int))usleep)(3)")),
    ("a system call of another name", "kernel", plant_call("lib/base/check.c", "(_exit(3), 0)")),
    ("a system call by hand", "kernel",
     plant_call("lib/base/check.c", '0; __asm__ volatile("syscall")')),
]


def main():
    root, archive, compiler = sys.argv[1], sys.argv[2], sys.argv[3:] or ["cc"]
    original = Tree(root)

    def objects_of(tree):
        """The objects of the archive, and of what was planted."""
        objects = Objects(tree, archive)
        for path, text in tree.files.items():
            if text == original.files.get(path) or not path.endswith(".c"):
                continue
            planted = os.path.join(tree.root, "planted.o")
            subprocess.run(
                [*compiler, "-std=gnu11", "-D_GNU_SOURCE", "-w", "-c", "-I",
                 os.path.join(root, "include"), "-I", tree.lib, "-o", planted,
                 os.path.join(tree.lib, path)], check=True)
            objects.take_object("/".join(tree.module_of(path)), planted)
        return objects

    every = checks(compiler, objects_of)
    print(f"1..{len(every) + len(PLANTED)}")
    number, failed = 0, False

    def point(good, name, lines=()):
        nonlocal number, failed
        number += 1
        failed |= not good
        print(f"{'ok' if good else 'not ok'} {number} - {name}")
        for line in lines:
            print(f"# {line}")

    for name, check in every.items():
        found = list(check(original))
        point(not found, name, found)

    for name, check, plant in PLANTED:
        with tempfile.TemporaryDirectory() as copy:
            for part in ("lib", "include", "docs"):
                shutil.copytree(os.path.join(root, part), os.path.join(copy, part))
            plant(copy)
            point(list(every[check](Tree(copy))), f"{check} finds {name}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
