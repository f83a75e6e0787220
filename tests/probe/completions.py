#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Completions for bash and zsh, as the shells themselves complete.

usage: completions.py GMEM-TOOLS.BASH _GMEM GMEM-PROBE GMEM-SHOW GMEM-IMAGE
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, run

BASH, ZSH = (pathlib.Path(path).resolve() for path in sys.argv[1:3])
PROGRAMS = {pathlib.Path(path).name: pathlib.Path(path).resolve() for path in sys.argv[3:]}
FILES = ["dump of vm.json", "guest.img"]


def environment():
    path = ":".join({str(path.parent) for path in PROGRAMS.values()})
    return {**os.environ, "PATH": path + ":" + os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def in_directory(command, text=None):
    with tempfile.TemporaryDirectory() as directory:
        for name in FILES:
            pathlib.Path(directory, name).touch()
        result = subprocess.run(command, cwd=directory, input=text, env=environment(), text=True,
                                capture_output=True, check=False, timeout=60)
    check(result.returncode == 0 and not result.stderr, command, result.stderr, result.stdout)
    return result.stdout


# bash itself splits the line; what the function leaves in COMPREPLY is what is offered.
DRIVE_BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
complete -p "$1" >/dev/null || exit 1
_gmem_tools "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
[ ${#COMPREPLY[@]} = 0 ] || printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(*words):
    if not shutil.which("bash"):
        raise Skip("bash is missing")
    return sorted(in_directory(["bash", "-c", DRIVE_BASH, "bash", BASH, *words]).splitlines())


# zsh completes on a terminal of its own (zpty); each match is taken where it is added.
DRIVE_ZSH = r"""
zmodload zsh/zpty
zpty z zsh -f -i
take() { local line; zpty -r -m z line "*$1*" || exit 3; REPLY=$line; }
zpty -w z 'PROMPT=; unsetopt zle_bracketed_paste prompt_sp; fpath=('"$1"' $fpath); autoload -U compinit; compinit -u -d '"$2"'
compadd() {
	if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
	local -a __hits __dscr; local __i
	builtin compadd -A __hits -D __dscr "$@"
	for __i in $__hits; do print -r -- "MATCH<$__i>" >&9; done
	builtin compadd "$@"
}
exec 9>'"$3"'
zstyle ":completion:*" list-prompt ""; LISTMAX=10000
bindkey "^I" complete-word; print REA''DY'
take READY
zpty -n -w z "$4"$'\t'
sleep 1.5
zpty -n -w z $'\x15''print DO''NE'$'\n'
take DONE
zpty -d z
"""


def zsh(line):
    if not shutil.which("zsh"):
        raise Skip("zsh is missing")
    with tempfile.TemporaryDirectory() as work:
        found = pathlib.Path(work, "found")
        found.touch()
        in_directory(["zsh", "-f", "-c", DRIVE_ZSH, "zsh", ZSH.parent, work + "/dump", found, line])
        return sorted(set(re.findall(r"^MATCH<(.*)>$", found.read_text(), re.M)))


def options_of(program):
    text = subprocess.run([PROGRAMS[program], "--help"], capture_output=True, text=True, check=True).stdout
    return sorted(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.M))


def bash_offers_every_option():
    for program in PROGRAMS:
        equal([word.rstrip("=") for word in bash(program, "--")], options_of(program), program)


def zsh_offers_every_option():
    for program in PROGRAMS:
        offered = {word.split("=")[0] for word in zsh(program + " --")}
        equal(sorted(set(options_of(program)) - offered), [], f"options that zsh does not offer for {program}")
        text = ZSH.read_text().split(program + ")")[1].split(";;")[0]
        known = set(re.findall(r"(--[a-z-]+)=?\[", text)) | {"--help", "--version"}
        equal(sorted(known - set(options_of(program))), [], f"options that {program} has not")


def bash_offers_arguments():
    equal(bash("gmem-show", "--color", "="), ["always", "auto", "never"], "--color=")
    equal(bash("gmem-show", "--color", "=", "al"), ["always"], "--color=al")
    equal(bash("gmem-probe", "--require", "in-"), ["in-place", "in-place"], "--require in-, of both kinds")
    check("guest-memfd" in bash("gmem-probe", "--require", ""), "names of findings")
    equal(bash("gmem-show", "--watch", ""), [], "--watch")
    equal(bash("gmem-show", ""), FILES, "files")
    equal(bash("gmem-show", "--socket", "du"), FILES[:1], "--socket")
    equal(bash("gmem-image", ""), ["diff", "info", "merge", "regions", "verify"], "commands")
    equal(bash("gmem-image", "verify", ""), FILES, "images")
    equal(bash("gmem-image", "verify", "--al"), ["--allow-lost"], "--al")
    equal(bash("gmem-image", "verify", "--js"), [], "what verify refuses")
    equal(bash("gmem-image", "info", "--al"), [], "what info refuses")
    equal(bash("gmem-image", "verify", "--wo"), ["--workers"], "--wo")
    equal(bash("gmem-image", "info", "--wo"), [], "workers of info")
    equal(bash("gmem-image", "info", "--js"), ["--json"], "--js")
    equal(bash("gmem-image", "merge", "--ou"), ["--output"], "what merge takes")
    equal(bash("gmem-image", "merge", "--pa"), [], "what merge refuses")
    equal(bash("gmem-image", "merge", "--output", "gu"), FILES[1:], "a file to write")
    equal(bash("gmem-image", "diff", "--qu"), ["--quiet"], "what diff takes")
    equal(bash("gmem-image", "diff", "--ou"), [], "what diff refuses")
    equal(bash("gmem-image", "diff", "guest.img", ""), FILES, "a second image")
    equal(bash("gmem-probe", ""), [], "gmem-probe has no arguments")


def zsh_offers_arguments():
    equal(zsh("gmem-show --color="), ["always", "auto", "never"], "--color=")
    check({"in-place", "guest-memfd"} <= set(zsh("gmem-probe --require ")), "--require")
    check("--json" not in zsh("gmem-image verify --"), "what verify refuses")
    check("--allow-lost" not in zsh("gmem-image regions --"), "what regions refuses")
    check({"--allow-lost", "--workers"} <= set(zsh("gmem-image verify --")), "what verify takes")
    equal(zsh("gmem-image "), ["diff", "info", "merge", "regions", "verify"], "commands")
    check("guest.img" in zsh("gmem-image verify g"), "images")
    check("guest.img" in zsh("gmem-image merge --output x g"), "images to merge")
    check("--parent" in zsh("gmem-image diff --"), "what diff takes")
    check("--output" not in zsh("gmem-image diff --"), "what diff refuses")
    check("guest.img" in zsh("gmem-show g"), "dumps")


def every_type_that_is_offered_is_known():
    for kind in bash("gmem-probe", "--vm-type", ""):
        result = subprocess.run([PROGRAMS["gmem-probe"], "--vm-type", kind], capture_output=True, check=False)
        check(result.returncode != 2, kind, result.stderr)


def the_files_are_well_formed():
    in_directory(["bash", "-n", BASH])
    if shutil.which("zsh"):
        in_directory(["zsh", "-n", ZSH])


run([
    the_files_are_well_formed,
    bash_offers_every_option,
    bash_offers_arguments,
    every_type_that_is_offered_is_known,
    zsh_offers_every_option,
    zsh_offers_arguments,
])
