#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem.h alone: it compiles everywhere, its layout is pinned, it documents itself.

usage: header.py HEADER MAP LAYOUT.C COMPILER...
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, run

HEADER, MAP, LAYOUT = (pathlib.Path(path) for path in sys.argv[1:4])
COMPILER = sys.argv[4:]
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Wpadded", "-Werror", "-fsyntax-only"]

TEXT = HEADER.read_text()
SECTIONS = re.findall(r"/\*\*\n(.*?)\*/\n(.*?)(?=\n\n|\Z)", TEXT, re.S)

# The two ways to say how a function may be called
THREADS = re.compile(r"Thread-safe|One thread at a time per object; different objects in parallel")


def compile_alone(compiler, language, standard, source):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / f"alone.{language}"
        path.write_text(source)
        command = [*compiler, f"-std={standard}", *STRICT, f"-I{HEADER.parent}", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    check(result.returncode == 0, " ".join(command) + "\n" + result.stderr)


API = r"^GMEM_API\s+(?:GMEM_CHECKED\s+)?(.*?)\b(gmem_\w+)\((.*?)\);"
INLINE = r"^GMEM_INLINE ([^;{]*?)\b(gmem_\w+)\((.*?)\)\n\{"


def prototypes(*patterns):
    """name -> (return type, parameter names), of everything the library exports"""
    found = {}
    for match in (m for pattern in patterns or (API, INLINE)
                  for m in re.finditer(pattern, TEXT, re.S | re.M)):
        result, name, arguments = match.groups()
        names = [re.search(r"(\w+)$", argument.strip()).group(1)
                 for argument in arguments.split(",") if argument.strip() != "void"]
        found[name] = (" ".join(result.split()), names)
    return found


def documents():
    """name -> the comment directly above it"""
    found = {}
    for comment, declaration in SECTIONS:
        match = re.match(r"(?:GMEM_API|GMEM_INLINE)\s.*?\b(gmem_\w+)\(", declaration, re.S)
        if match:
            found[match.group(1)] = comment
    return found


def modules():
    """title -> text, of each section, in order"""
    parts = re.split(r"^/\* -+ (.*?) -+ \*/$", TEXT, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def index():
    """title -> what it says, of each module in the comment at the top of the header"""
    listed = re.search(r"^ \* Modules, lowest layer first.*?:\n \*\n(.*?)^ \*$", TEXT, re.S | re.M)
    check(listed, "the list of modules is not found")
    return dict(re.findall(r"^ \*   (\S.*?)  +(\S.*)$", listed[1], re.M))


def structs():
    """name -> fields, in order"""
    found = {}
    for name, body in re.findall(r"^struct (gmem_\w+) \{\n(.*?)^\};", TEXT, re.S | re.M):
        fields = re.findall(r"(\w+)(?:\[\w+\])?;", body)
        found[name] = fields
    return found


def constants():
    """every enumerator and every macro with a value"""
    enumerators = []
    for body in re.findall(r"^enum gmem_\w+ \{\n(.*?)^\};", TEXT, re.S | re.M):
        enumerators += re.findall(r"^\s*(GMEM_\w+)\b", body, re.M)
    macros = re.findall(r"^#define (GMEM_\w+)[ \t]+\(?[-(\d]", TEXT, re.M)
    return enumerators + [macro for macro in macros if not macro.startswith("GMEM_VERSION")]


def compiles_alone_as_C99():
    compile_alone(COMPILER, "c", "c99", '#include "gmem.h"\n')


def compiles_alone_as_C11_twice_included():
    compile_alone(COMPILER, "c", "c11", '#include "gmem.h"\n#include "gmem.h"\n')


def compiles_alone_as_Cxx11():
    compilers = [path for path in map(shutil.which, ("g++", "clang++")) if path]
    if not compilers:
        raise Skip("neither g++ nor clang++ is here")
    for compiler in compilers:
        compile_alone([compiler], "cc", "c++11", '#include "gmem.h"\n')
        compile_alone([compiler], "cc", "c++11",
                      '#include "gmem.h"\ngmem_vm_opts opts{};\ngmem_request request{};\n')


def compiles_alone_with_the_other_C_compiler():
    others = [path for path in map(shutil.which, ("gcc", "clang"))
              if path and pathlib.Path(path).name not in COMPILER[-1]]
    if not others:
        raise Skip("gcc and clang are not both here")
    for compiler in others:
        compile_alone([compiler], "c", "c99", '#include "gmem.h"\n')


def layout_and_numbers_are_as_pinned():
    compile_alone(COMPILER, "c", "c11", LAYOUT.read_text())


def every_struct_and_field_is_pinned():
    pinned = LAYOUT.read_text()
    for name, fields in structs().items():
        check(f"SIZE({name}, " in pinned, f"the size of struct {name} is not pinned")
        for field in fields:
            check(f"FIELD({name}, {field}, " in pinned, f"{name}.{field} is not pinned")


def every_constant_is_pinned():
    check(len(constants()) > 50, "constants of the header are not found:", constants())
    pinned = LAYOUT.read_text()
    missing = [name for name in constants() if f"NUMBER({name}, " not in pinned]
    equal(missing, [], "constants that are not pinned")


def every_options_struct_begins_with_its_size():
    options = {name: fields for name, fields in structs().items()
               if name.endswith("_opts") or name == "gmem_request"}
    check(options, "no options struct found")
    for name, fields in options.items():
        equal(fields[0], "size", f"first field of {name}")


def the_map_exports_what_the_header_declares():
    exported = re.findall(r"^\s*(gmem_\w+);", MAP.read_text(), re.M)
    equal(len(exported), len(set(exported)), "distinct names in the map")
    equal(sorted(set(prototypes()) - set(exported)), [], "declared but not in the map")
    equal(sorted(set(exported) - set(prototypes())), [], "in the map but not declared")


def every_function_is_declared_with_GMEM_API():
    declared = set(re.findall(r"\b(gmem_\w+)\([^)]*\);", re.sub(r"/\*.*?\*/", "", TEXT, flags=re.S)))
    check(len(declared) > 30, "functions of the header are not found:", declared)
    equal(sorted(declared - set(prototypes())), [], "declared without GMEM_API")


def every_function_has_a_comment_directly_above():
    comments = documents()
    check(len(prototypes(INLINE)) == 3, "inline functions are not found:", prototypes(INLINE))
    for name in prototypes():
        check(name in comments, f"{name} has no /** comment directly above it")
        check(comments[name].startswith(f" * {name}() - "),
              f"the comment above {name} begins otherwise: {comments[name].splitlines()[0]}")


def every_comment_names_exactly_the_parameters():
    for name, (_, parameters) in prototypes().items():
        described = re.findall(r"^ \* @(\w+):", documents()[name], re.M)
        equal(described, parameters, f"parameters described for {name}")


def the_index_has_the_modules_in_their_order():
    check(len(modules()) > 20, "sections of the header are not found:", list(modules()))
    equal(list(index()), list(modules()), "modules of the index")


def every_name_of_the_index_is_declared_in_its_module():
    for title, text in index().items():
        names = re.findall(r"\bgmem_\w+", text)
        check(names, f"the index names nothing of {title}")
        for name in names:
            pattern = rf"^(?:GMEM_API|GMEM_INLINE|struct|enum)\s.*?\b{name}(?:_\w+)?(?:\(| \{{)"
            check(re.search(pattern, modules()[title], re.M), f"{title} does not declare {name}")


def every_comment_says_since_threads_and_return():
    for name, (result, _) in prototypes().items():
        comment = " ".join(documents()[name].replace("\n *", " ").split())
        check(re.search(r"Since: \d+\.\d+\.", comment), f"{name}: no 'Since: X.Y.'")
        check(THREADS.search(comment), f"{name}: no sentence on threads")
        equal("Return: " in comment, result != "void", f"{name}: has 'Return:'")


def every_struct_comment_names_exactly_the_fields():
    for name, fields in structs().items():
        comments = [comment for comment, _ in SECTIONS if comment.startswith(f" * struct {name} - ")]
        equal(len(comments), 1, f"comments of struct {name}")
        described = re.findall(r"^ \* @(\w+):", comments[0], re.M)
        equal(sorted(described), sorted(fields), f"fields described for struct {name}")


run([
    compiles_alone_as_C99,
    compiles_alone_as_C11_twice_included,
    compiles_alone_as_Cxx11,
    compiles_alone_with_the_other_C_compiler,
    layout_and_numbers_are_as_pinned,
    every_struct_and_field_is_pinned,
    every_constant_is_pinned,
    every_options_struct_begins_with_its_size,
    the_map_exports_what_the_header_declares,
    every_function_is_declared_with_GMEM_API,
    every_function_has_a_comment_directly_above,
    every_comment_names_exactly_the_parameters,
    every_comment_says_since_threads_and_return,
    the_index_has_the_modules_in_their_order,
    every_name_of_the_index_is_declared_in_its_module,
    every_struct_comment_names_exactly_the_fields,
])
