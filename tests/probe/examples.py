#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The examples, where they cannot run.

usage: examples.py EXAMPLE...
"""
import os
import pathlib
import subprocess
import sys

from tap import Skip, check, equal, run

EXAMPLES = {pathlib.Path(path).name: path for path in sys.argv[1:]}


def ask(*command, **options):
    """Also waits until no process has its output any more."""
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=60, **options)


def instead_of_kvm(node):
    """How to run a program where /dev/kvm is another file"""
    shown = ask("unshare", "-m", "mount", "--bind", node, "/dev/kvm")
    if shown.returncode:
        raise Skip(f"nothing can be mounted here: {shown.stderr.strip()}")
    return ["unshare", "-m", "sh", "-c", f'mount --bind {node} /dev/kvm && exec "$@"', "sh"]


def what_is_not_KVM_is_said_not_to_be():
    command = instead_of_kvm("/dev/null")
    for name, path in EXAMPLES.items():
        result = ask(*command, path)
        equal(result.returncode, 77, name)
        equal(result.stderr, "", name)
        check("cannot run here: /dev/kvm is not KVM." in result.stdout, name, result.stdout)


def no_remedy_is_told_that_may_not_fit():
    if os.getuid():
        raise Skip("only root can run them as somebody else")
    mode = os.stat("/dev/kvm").st_mode if os.path.exists("/dev/kvm") else 0o6
    if mode & 0o6:
        raise Skip("other users may use KVM, or nobody may")
    for name, path in EXAMPLES.items():
        result = ask(path, user=65534, group=65534, extra_groups=[])
        if result.returncode == 127:
            raise Skip(f"another user cannot run it: {result.stderr.strip()}")
        equal(result.returncode, 77, name)
        check("no permission to open /dev/kvm" in result.stdout, name, result.stdout)
        check("usermod" not in result.stdout and "gmem-probe" in result.stdout, name, result.stdout)


def arguments_that_are_refused_are_named():
    for name, arguments in (("describe", ["--serve"]), ("hello-guest", ["--backing"]),
                            ("snapshot", ["a", "b"]), ("follower", ["--no-such"])):
        result = ask(EXAMPLES[name], *arguments)
        equal(result.returncode, 2, name)
        equal(result.stderr.split("\n")[0], "unexpected or incomplete: " + " ".join(arguments), name)


def device_ends_with_its_VMM():
    reader, writer = os.pipe()
    os.close(reader)
    # The VMM is killed by SIGPIPE as soon as it has something to say.
    with subprocess.Popen([EXAMPLES["device-process"]], stdout=writer, stderr=subprocess.PIPE) as vmm:
        os.close(writer)
        vmm.communicate(timeout=60)


run([
    what_is_not_KVM_is_said_not_to_be,
    no_remedy_is_told_that_may_not_fit,
    arguments_that_are_refused_are_named,
    device_ends_with_its_VMM,
])
