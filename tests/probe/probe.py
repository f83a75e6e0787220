#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gmem-probe: its JSON, its table, its exit statuses, its manual.

usage: probe.py GMEM-PROBE MAN-PAGE...
"""
import functools
import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import tempfile

from tap import Skip, check, equal, note, run

PROBE = str(pathlib.Path(sys.argv[1]).resolve())
PAGES = [pathlib.Path(path) for path in sys.argv[2:]]
MANUAL = next(page for page in PAGES if page.name == "gmem-probe.1").read_text()

ANSWERS = ("yes", "no", "unknown")
BACKINGS = ["shared", "private", "mapped", "host", "in-place"]
NOWHERE = "/nonexistent/kvm"
ESCAPE = "\033["


def probe(*options, **how):
    """Run gmem-probe; COLUMNS and NO_COLOR are unset unless given in environment."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("COLUMNS", "NO_COLOR")}
    environment.update(how.pop("environment", {}))
    return subprocess.run([PROBE, *options], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                          timeout=100, check=False, **how)


def status(*options):
    return probe(*options).returncode


def load(result):
    equal(result.returncode, 0, "exit status, " + result.stderr.strip())
    equal(result.stderr, "", "standard error")
    return json.loads(result.stdout)


@functools.lru_cache(maxsize=None)
def report(*options):
    return load(probe("--json", *options))


def finding(of_report, name):
    return next(line for line in of_report["findings"] if line["name"] == name)


def with_vm():
    if report()["vm"] is None:
        raise Skip("no VM can be made here: " +
                   (report()["note"] or finding(report(), "kvm")["reason"]))
    return report()


def has_type(value, what, *types):
    # To Python, a boolean is an integer too.
    right = type(value) in types
    check(right, f"{what} is {value!r}, not {' or '.join(t.__name__ for t in types)}")


def has_members(thing, what, members):
    has_type(thing, what, dict)
    equal(list(thing), list(members), f"members of {what}")
    for name, types in members.items():
        has_type(thing[name], f"{what}, {name}", *types)


NONE = type(None)
VARIANTS = [(), ("--host",), ("--no-guest",), ("--kvm", NOWHERE)]


def the_json_has_the_documented_schema():
    for options in VARIANTS:
        whole = report(*options)
        has_members(whole, "the report", {
            "schema": (int,), "version": (str,), "vm": (dict, NONE), "note": (str, NONE),
            "findings": (list,), "backings": (list,)})
        equal(whole["schema"], 1, "schema")
        check(re.fullmatch(r"\d+\.\d+\.\d+", whole["version"]), "version", whole["version"])
        if whole["vm"] is not None:
            has_members(whole["vm"], "vm", {"type": (int,)})


def every_finding_in_the_json_is_well_formed():
    for options in VARIANTS:
        findings = report(*options)["findings"]
        check(len(findings) >= 24, "findings:", len(findings))
        for line in findings:
            has_members(line, f"finding {line.get('name')}", {
                "name": (str,), "title": (str,), "answer": (str,), "value": (int, NONE),
                "reason": (str,), "remedy": (str, NONE)})
            check(line["answer"] in ANSWERS, line)
            check(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", line["name"]), line)
            check(line["title"] and line["reason"], line)
        names = [line["name"] for line in findings]
        equal(len(set(names)), len(names), "distinct names of findings")


def every_backing_in_the_json_is_well_formed():
    for options in VARIANTS:
        whole = report(*options)
        equal([line.get("name") for line in whole["backings"]], BACKINGS, "ways of backing")
        for line in whole["backings"]:
            yes = line["answer"] == "yes"
            has_members(line, f"backing {line['name']}", {
                "name": (str,), "answer": (str,),
                "create_flags": (int,) if yes else (NONE,),
                "needs_region2": (bool,) if yes else (NONE,),
                "attributes": (str,) if yes else (NONE,),
                "reason": (str,)})
            check(line["answer"] in ANSWERS and line["reason"], line)
            check(line["attributes"] in (None, "none", "vm", "file"), line)
            if whole["vm"] is not None:
                check(line["answer"] != "unknown", line)


def every_no_and_nothing_else_has_a_remedy():
    for options in VARIANTS:
        for line in report(*options)["findings"]:
            equal(bool(line["remedy"]), line["answer"] == "no", f"{line} has a remedy")


def plans_have_the_flags_that_make_the_backing():
    plans = {line["name"]: (line["create_flags"], line["needs_region2"], line["attributes"])
             for line in with_vm()["backings"] if line["answer"] == "yes"}
    expected = {"shared": (3, True, "none"), "mapped": (3, False, "none"),
                "host": (0, False, "none"), "private": (0, True, "vm")}
    for name, plan in plans.items():
        equal(plan, expected.get(name), f"plan of {name}")


def the_json_is_alone_on_standard_output_when_a_requirement_fails():
    result = probe("--json", "--require", "shared", "--kvm", NOWHERE)
    equal(result.returncode, 1, "exit status")
    equal(json.loads(result.stdout), report("--kvm", NOWHERE), "the report")
    check(result.stderr.startswith("gmem-probe: shared: no: "), result.stderr)


def the_json_survives_any_file_name():
    for name in (b'/no "quotes" \\ \x01\x1f\x7f\n\t', b"/no \xff\xc3 \xed\xa0\x80 \xf4\x90\x80\x80",
                 "/no \u00e9 \u20ac \U0001f600".encode()):
        result = probe("--json", "--kvm", name)
        reason = finding(load(result), "kvm")["reason"]
        expected = name.decode(errors="replace")
        # how many replacements stand for a bad sequence is not promised
        equal(re.sub("\ufffd+", "\ufffd", reason).split(" cannot be")[0],
              re.sub("\ufffd+", "\ufffd", expected), "the name in the reason")


def words(text):
    return " ".join(text.split())


def without_fd(text):
    """Which fd a VM has is no part of what is compared."""
    return re.sub(r"\bfd \d+", "fd", text)


def the_table_has_every_title_reason_and_remedy():
    for options in VARIANTS:
        result = probe(*options, environment={"COLUMNS": "9999"})
        equal(result.returncode, 0, "exit status, " + result.stderr)
        for line in report(*options)["findings"]:
            start = r"\n  " + re.escape(line["title"]) + " +" + line["answer"] + " +"
            rows = re.findall(start + r"(.*)\n", result.stdout)
            check(without_fd(line["reason"]) in map(without_fd, rows), "no row for", line)
            if line["remedy"]:
                check(f"to change: {line['remedy']}\n" in result.stdout, line["remedy"])
        for line in report(*options)["backings"]:
            check(re.search(rf"\n  {line['name']} +{line['answer']} +{re.escape(line['reason'])}\n",
                            result.stdout), "no line for", line)


def the_table_has_its_groups_in_order():
    headings = re.findall(r"^(\S.*)$", probe().stdout, re.M)
    equal([line for line in headings if line in (
        "Host", "What KVM says", "What trying it proved", "Ways of backing")],
          ["Host", "What KVM says", "What trying it proved", "Ways of backing"], "headings")


def the_table_fits_its_width():
    wide = words(probe(environment={"COLUMNS": "500"}).stdout)
    for width in (72, 80, 100, 132):
        table = probe(environment={"COLUMNS": str(width)}).stdout
        longest = max(table.splitlines(), key=len)
        check(len(longest) <= width, f"{len(longest)} columns of {width}:", longest)
        check(not re.search(r" $", table, re.M), "a line ends in a space")
        equal(len(words(table)), len(wide), "the same text")


def a_useless_width_does_no_harm():
    for width in ("", "0", "-5", "1", "x", "99999999999999999999"):
        result = probe(environment={"COLUMNS": width})
        equal(result.returncode, 0, f"exit status for COLUMNS={width}")
        check("Ways of backing" in result.stdout, result.stdout)


def the_verdict_comes_first():
    def first(*options):
        return words(probe(*options).stdout.split("\n\n")[0])

    check(first("--kvm", NOWHERE).startswith("No guest can run here: "), first("--kvm", NOWHERE))
    answers = {line["name"]: line["answer"] for line in with_vm()["backings"]}
    equal(first("--no-guest") == "Shared guest_memfd can back guests here.", answers["shared"] == "yes",
          "shared, says the verdict")


def red_is_for_what_keeps_guests_from_running():
    def red(*options):
        table = probe("--color=always", *options, environment={"COLUMNS": "9999"}).stdout
        return set(re.findall(r"^  (\S.*?) +\033\[31m", table, re.M))

    titles = {line["title"]: line["name"] for line in report()["findings"]}
    harms = {"kvm", "user-memory2", "guest-memfd", "create", "bind"}
    with_vm()
    check({titles[title] for title in red() - set(BACKINGS)} <= harms, red())
    equal(red() & set(BACKINGS), set(), "red though a guest can be backed")
    check({"KVM", *BACKINGS} <= red("--kvm", NOWHERE), red("--kvm", NOWHERE))


def somebody():
    """How to run a program as a user who is in no group, if we may"""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}


def without_permission_the_report_is_the_command_that_gives_it():
    try:
        result = probe(**somebody())
        of_kvm = probe("--json", **somebody())
    except PermissionError as error:
        raise Skip(f"cannot run it as another user: {error}") from error
    if result.returncode == 127:
        raise Skip(f"another user cannot run it: {result.stderr.strip()}")
    line = finding(load(of_kvm), "kvm")
    if "EACCES" not in line["reason"]:
        raise Skip("other users may use KVM, or nobody may")
    check("sudo usermod -aG kvm $USER" in line["remedy"], line)
    verdict = result.stdout.split("\n\n")[0].splitlines()
    fields = (line.split(":") for line in pathlib.Path("/etc/group").read_text().splitlines())
    groups = {int(field[2]): field[0] for field in fields}
    device = os.stat("/dev/kvm")
    if device.st_mode & 0o60 == 0o60 and device.st_gid and device.st_gid in groups:
        equal(verdict, ["No permission to open /dev/kvm. Join its group, then log in again:",
                        f"  sudo usermod -aG {groups[device.st_gid]} $USER"], "its group can open it")
    else:
        # Where its group may not open it either, it is given to one, which may have to be made.
        equal(verdict, ["No permission to open /dev/kvm. Give it to a group and join that, then log in again:",
                        *(["  sudo groupadd --system kvm"] if "kvm" not in groups.values() else []),
                        "  sudo chgrp kvm /dev/kvm && sudo chmod g+rw /dev/kvm",
                        "  sudo usermod -aG kvm $USER"], "a group is given it")
    check("What KVM says" not in result.stdout, result.stdout)


def colours_are_for_terminals():
    check(ESCAPE not in probe().stdout, "colours in a pipe")
    check(ESCAPE not in probe("--color=never").stdout, "colours though never")
    check(ESCAPE in probe("--color=always").stdout, "no colours though always")
    check(ESCAPE in probe("--color=always", environment={"NO_COLOR": "1"}).stdout,
          "no colours though always")
    check(ESCAPE not in probe("--json", "--color=always").stdout, "colours in JSON")
    plain = re.sub(r"\033\[\d*m", "", probe("--color=always", "--host").stdout)
    equal(plain, probe("--host").stdout, "what is left without the colours")


def on_terminal(*options, environment=None):
    child, terminal = pty.fork()
    if child == 0:
        for name in ("COLUMNS", "NO_COLOR"):
            os.environ.pop(name, None)
        os.environ.update(environment or {})
        os.execv(PROBE, [PROBE, *options])
    output = b""
    try:
        while chunk := os.read(terminal, 65536):
            output += chunk
    except OSError:
        pass  # how a terminal says that nobody writes to it any more
    os.close(terminal)
    equal(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0, "exit status")
    return output.decode()


def a_terminal_has_colours_unless_NO_COLOR():
    check(ESCAPE in on_terminal("--host"), "no colours on a terminal")
    check(ESCAPE in on_terminal("--host", environment={"NO_COLOR": ""}), "empty is as unset")
    check(ESCAPE not in on_terminal("--host", environment={"NO_COLOR": "1"}), "NO_COLOR")
    check(ESCAPE not in on_terminal("--host", "--color=never"), "--color=never")


def file_names_do_not_steer_the_terminal():
    table = probe("--kvm", "/no\033[2J\nsuch").stdout
    check("\033" not in table, "an escape sequence came through")
    check("/no?[2J?such" in words(table), table)
    name = b"/no\xc2\x9b\x9b\xe2\x80\xae\xe2\x80\xa8\xcd\xb8\xee\x80\x80such"
    check("/no??????such" in words(probe("--kvm", name).stdout), probe("--kvm", name).stdout)
    check("\\u202e" in probe("--json", "--kvm", name).stdout, probe("--json", "--kvm", name).stdout)
    check("--no??" in probe(b"--no\xc2\x9b\x9b").stderr, probe(b"--no\xc2\x9b\x9b").stderr)
    check("no?such" in probe("--require", b"no\x9bsuch").stderr, probe("--require", b"no\x9bsuch").stderr)


def require_says_by_exit_status_what_the_json_says():
    for line in report()["findings"] + report()["backings"]:
        if line["name"] in BACKINGS and line not in report()["backings"]:
            continue  # the way of backing goes first
        result = probe("--quiet", "--require", line["name"])
        equal(result.returncode, int(line["answer"] != "yes"), f"status for {line}")
        equal(result.stdout, "", "standard output")
        equal(result.stderr.startswith(f"gmem-probe: {line['name']}: {line['answer']}: "),
              line["answer"] != "yes", f"said of {line}: {result.stderr}")


def require_needs_all_of_several():
    equal(status("--require", "page-size", "--require", "architecture"), 0, "two yes")
    result = probe("--quiet", "--require", "in-place", "--require", "page-size",
                   "--require", "private", "--kvm", NOWHERE)
    equal(result.returncode, 1, "not all yes")
    equal(re.findall(r"^gmem-probe: (\S+): ", result.stderr, re.M), ["in-place", "private"],
          "those not there")


def require_of_a_name_that_does_not_exist_is_wrong_usage():
    result = probe("--require", "page-size", "--require", "warp-drive")
    equal(result.returncode, 2, "status")
    equal(result.stdout, "", "standard output")
    check("warp-drive" in result.stderr and "io-uring" in result.stderr, result.stderr)


def wrong_usage_is_status_2_and_prints_no_report():
    for options in (["--warp"], ["-x"], ["extra"], ["help"], ["--vm-type"], ["--vm-type", "banana"],
                    ["--vm-type", ""], ["--vm-type", "-1"], ["--vm-type", " 1"],
                    ["--vm-type", "1x"], ["--vm-type", "99999999999999999999"],
                    ["--require"], ["--kvm"], ["--color=sometimes"], ["--json", "--quiet"],
                    ["--host", "--vm-type", "0"], ["--host=1"]):
        result = probe(*options)
        equal(result.returncode, 2, f"status for {options}")
        equal(result.stdout, "", f"standard output for {options}")
        check("gmem-probe --help" in result.stderr, result.stderr)


def output_that_cannot_be_written_is_status_3():
    with open("/dev/full", "w", encoding="ascii") as full:
        for options in ((), ("--json",)):
            result = subprocess.run([PROBE, "--host", *options], stdout=full,
                                    stderr=subprocess.PIPE, text=True, check=False)
            equal(result.returncode, 3, "status")
            check("standard output" in result.stderr, result.stderr)


def the_host_report_makes_no_VM():
    equal(report("--host")["vm"], None, "vm")
    equal(report("--host")["note"], None, "note")
    for line in report("--host")["backings"]:
        check(line["answer"] != "yes", "only a VM can tell", line)


def the_report_is_of_the_VM_type_asked_for():
    vm_type = with_vm()["vm"]["type"]
    check(vm_type == 0 or os.uname().machine == "aarch64", "the default type is", vm_type)
    equal(report("--vm-type", "default"), report(), "--vm-type default")
    equal(report("--vm-type", "0x0"), report(), "--vm-type 0x0")


def vm_types_have_names():
    names = ["default", "sw-protected", "SEV", "sev-es", "SNP", "tdx"]
    if os.uname().machine == "aarch64":
        names = ["default", "pKVM"]
    with_vm()
    for name in names:
        whole = report("--vm-type", name)
        if whole["vm"] is None:
            check(re.search(rf" type {name} can", whole["note"], re.I), name, whole["note"])
            equal(probe("--vm-type", name).stdout.split("\n\n")[0].replace("\n", " "), whole["note"],
                  "the verdict")
        elif name != "default":
            check(re.search(rf"in a VM of type {name}$", probe("--vm-type", name).stdout, re.I | re.M), name)


def an_impossible_VM_type_is_a_host_report_with_a_note():
    with_vm()
    whole = report("--vm-type", "0x7fffffff")
    equal(whole["vm"], None, "vm")
    check("2147483647" in whole["note"], "note:", whole["note"])
    check(whole["note"] in words(probe("--vm-type", "0x7fffffff").stdout), "no note in the table")
    equal(status("--vm-type", "0x7fffffff", "--quiet", "--require", "host"), 1, "status")


def without_a_guest_the_guest_line_is_unknown():
    with_vm()
    line = finding(report("--no-guest"), "guest-uses-file")
    check(line["answer"] != "yes", line)


def check_no_kvm(whole, path, because):
    equal(whole["vm"], None, "vm")
    line = finding(whole, "kvm")
    equal(line["answer"], "no", "answer")
    check(path in line["reason"] and because in line["reason"], line["reason"])
    check(line["remedy"], line)
    equal({backing["answer"] for backing in whole["backings"]}, {"no"}, "ways of backing")
    equal(finding(whole, "page-size")["answer"], "yes", "the host is reported")


def a_missing_KVM_device_is_a_report():
    check_no_kvm(report("--kvm", NOWHERE), NOWHERE, "No such file")


def a_device_that_is_not_KVM_is_a_report():
    check_no_kvm(report("--kvm", "/dev/null"), "/dev/null", "is not KVM")
    check_no_kvm(report("--kvm", "/"), "/", "Is a directory")


def a_KVM_device_without_permission_is_a_report():
    with tempfile.TemporaryDirectory() as directory:
        closed = pathlib.Path(directory) / "closed"
        closed.mkdir(mode=0)
        os.chmod(directory, 0o755)
        try:
            result = probe("--json", "--kvm", str(closed / "kvm"), **somebody())
        except PermissionError as error:
            raise Skip(f"cannot run it as another user: {error}") from error
        if result.returncode == 127:
            raise Skip(f"another user cannot run it: {result.stderr.strip()}")
        check_no_kvm(load(result), str(closed / "kvm"), "Permission denied")


def version_and_help_say_so():
    equal(probe("--version").stdout, f"gmem-probe {report()['version']}\n", "--version")
    shown = probe("--help")
    equal(shown.returncode, 0, "status of --help")
    equal(probe("-V").stdout, probe("--version").stdout, "-V")
    equal(probe("-h").stdout, shown.stdout, "-h")
    check(max(map(len, shown.stdout.splitlines())) <= 80, "--help is wider than 80 columns")


def the_manual_has_every_option():
    options = set(re.findall(r"--([a-z][a-z-]*)", probe("--help").stdout))
    documented = set(re.findall(r"^\.It Fl -([a-z-]+)", MANUAL, re.M))
    check(len(options) >= 10, "options in --help:", options)
    equal(sorted(options ^ documented), [], "not in both --help and the manual")


def the_manual_has_every_finding_and_backing():
    names = [line["name"] for line in report()["findings"]]
    section = MANUAL.split(".Ss Findings")[1].split(".Sh ")[0]
    equal(re.findall(r"^\.It Cm (\S+)", section, re.M), names, "names in the manual")
    section = MANUAL.split(".Ss Ways of backing")[1].split(".Ss ")[0]
    equal(re.findall(r"^\.Cm (\S+)", section, re.M), BACKINGS, "backings in the manual")


def the_manual_has_every_member_of_the_json():
    section = MANUAL.split(".Sh JSON")[1].split(".Sh ")[0]
    documented = set(re.findall(r"^\.(?:It )?Li (\w+)", section, re.M))
    members = {*report(), "type", *report()["findings"][0], *report()["backings"][0]}
    equal(sorted(members - documented), [], "not in the manual")


def the_manual_pages_have_no_lint():
    if not shutil.which("mandoc"):
        raise Skip("mandoc is missing")
    for page in PAGES:
        result = subprocess.run(["mandoc", "-T", "lint", str(page)], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True, check=False)
        # which other pages are installed here does not matter
        found = [line for line in result.stdout.splitlines()
                 if "referenced manual not found" not in line]
        note("\n".join(found))
        equal(len(found), 0, f"messages on {page.name}")


run([
    the_json_has_the_documented_schema,
    every_finding_in_the_json_is_well_formed,
    every_backing_in_the_json_is_well_formed,
    every_no_and_nothing_else_has_a_remedy,
    plans_have_the_flags_that_make_the_backing,
    the_json_is_alone_on_standard_output_when_a_requirement_fails,
    the_json_survives_any_file_name,
    the_table_has_every_title_reason_and_remedy,
    the_table_has_its_groups_in_order,
    the_table_fits_its_width,
    a_useless_width_does_no_harm,
    the_verdict_comes_first,
    red_is_for_what_keeps_guests_from_running,
    without_permission_the_report_is_the_command_that_gives_it,
    colours_are_for_terminals,
    a_terminal_has_colours_unless_NO_COLOR,
    file_names_do_not_steer_the_terminal,
    require_says_by_exit_status_what_the_json_says,
    require_needs_all_of_several,
    require_of_a_name_that_does_not_exist_is_wrong_usage,
    wrong_usage_is_status_2_and_prints_no_report,
    output_that_cannot_be_written_is_status_3,
    the_host_report_makes_no_VM,
    the_report_is_of_the_VM_type_asked_for,
    vm_types_have_names,
    an_impossible_VM_type_is_a_host_report_with_a_note,
    without_a_guest_the_guest_line_is_unknown,
    a_missing_KVM_device_is_a_report,
    a_device_that_is_not_KVM_is_a_report,
    a_KVM_device_without_permission_is_a_report,
    version_and_help_say_so,
    the_manual_has_every_option,
    the_manual_has_every_finding_and_backing,
    the_manual_has_every_member_of_the_json,
    the_manual_pages_have_no_lint,
])
