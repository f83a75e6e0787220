# SPDX-License-Identifier: MIT
"""Debian's archive, through apt in a private root.

The machine's own sources, package lists and status are not touched, nothing is
installed, and apt checks every signature against Debian's archive keyring.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cache
import processes
from processes import Problem

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ["bookworm", "trixie", "trixie-backports"]
PACKAGES = r"linux-(image|binary|modules|source)-[0-9]|busybox-static$"
LISTS_MB = 38  # they grow slowly
FRESH = 24 * 3600  # seconds

CONFIGURATION = """\
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "arm64"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{root}";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
"""


def _apt(*command):
    environment = dict(os.environ, APT_CONFIG=str(cache.root() / "apt" / "apt.conf"))
    return processes.run(command, env=environment)


def _mirror():
    """The mirror this machine already uses, or $LIBGMEM_MIRROR."""
    chosen = os.environ.get("LIBGMEM_MIRROR")
    if chosen:
        return chosen
    _, targets = processes.run(["apt-get", "indextargets", "--no-release-info",
                                "--format", "$(REPO_URI)"])
    for uri in targets.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise Problem("apt here knows no Debian mirror; name one in LIBGMEM_MIRROR.")


def _set_up():
    root = cache.root() / "apt"
    for directory in ("lists/partial", "archives/partial"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    (root / "apt.conf").write_text(CONFIGURATION.format(root=root))
    (root / "sources.list").write_text("".join(
        f"deb [arch=amd64,arm64 signed-by={KEYRING}] {_mirror()} {suite} main\n"
        for suite in SUITES))


def _update():
    """Asks the archive what it holds; returns {package: version}."""
    if not Path(KEYRING).exists():
        raise Problem(f"{KEYRING} is missing: install debian-archive-keyring.")
    cache.need_space(0.5, "The archive's index")
    _set_up()
    with processes.telling(_say, f"downloading Debian's package lists ({LISTS_MB} MB)"):
        status, output = _apt("apt-get", "-q", "update", "-o", "APT::Update::Error-Mode=any")
    if status:
        raise Problem(f"Debian's archive cannot be read: {_reason(output)}")
    with processes.telling(_say, "looking for kernels in them"):
        return _list_packages()


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _reason(output):
    """The line of apt's that says most."""
    lines = [l for l in output.splitlines() if re.match("[EW]: ", l)]
    return next((l for l in lines if "Failed to fetch" in l), (lines or [output])[-1]).strip()


def _list_packages():
    _, names = _apt("apt-cache", "pkgnames")
    wanted = [n for n in names.split() if re.match(PACKAGES, n)]
    _, table = _apt("apt-cache", "madison", *wanted)
    packages = {}
    for line in table.splitlines():
        name, version, _ = (field.strip() for field in line.split("|"))
        # The newest comes first; a foreign package has its architecture appended.
        packages.setdefault(name.split(":")[0], version)
    return packages


def _size(name):
    """"34 MB", of a package file."""
    _, output = _apt("apt-get", "-qq", "download", "--print-uris", name)
    found = re.search(r"^'[^']*' \S+ (\d+) ", output, re.M)
    return f"{int(found[1]) / 1e6:.0f} MB" if found else "size unknown"


class Archive:
    """What the archive holds, remembered for a day and when there is no network."""

    def __init__(self):
        self._index = cache.root() / "packages.json"
        self._packages = None

    def packages(self):
        """{package: version} of every kernel package there is."""
        if self._packages is None:
            with cache.lock("archive"):
                self._packages = self._load()
        return self._packages

    def _load(self):
        try:
            known = json.loads(self._index.read_text())
            if time.time() - self._index.stat().st_mtime < FRESH:
                return known
        except (OSError, ValueError):
            known = None
        try:
            return self._refresh()
        except Problem as problem:
            if known is None:
                raise
            print(f"{problem}\nGoing by what it held when last read.", file=sys.stderr)
            return known

    def _refresh(self):
        packages = _update()
        temporary = self._index.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(packages, indent=1, sort_keys=True))
        temporary.rename(self._index)
        return packages

    def download(self, package, directory, architecture="", say=_say):
        """Fetches one package file into DIRECTORY and returns its path."""
        with cache.lock("archive"):
            if not (cache.root() / "apt" / "apt.conf").exists():
                self._packages = self._refresh()
            name = f"{package}:{architecture}" if architecture else package
            environment = dict(os.environ, APT_CONFIG=str(cache.root() / "apt" / "apt.conf"))
            with processes.telling(say, f"downloading {package} ({_size(name)})"):
                status, output = processes.run(["apt-get", "-q", "download", name],
                                               cwd=directory, env=environment)
        found = sorted(Path(directory).glob(f"{package}_*.deb"))
        if status or not found:
            raise Problem(f"Could not download {package}: {_reason(output)}")
        return found[0]


def extract(package_file, pattern, directory):
    """Takes the files whose path matches PATTERN out of a package; returns their paths."""
    reader = processes.start(["dpkg-deb", "--fsys-tarfile", package_file],
                             stdout=subprocess.PIPE)
    taken = []
    try:
        with tarfile.open(fileobj=reader.stdout, mode="r|") as tar:
            for member in tar:
                if member.isfile() and re.search(pattern, member.name):
                    path = Path(directory) / Path(member.name).name
                    path.write_bytes(tar.extractfile(member).read())
                    taken.append(path)
    finally:
        reader.stdout.close()
        processes.stop(reader)
    return taken


def version_key(text):
    """Orders 6.9.10 before 6.10.2."""
    return tuple(int(n) for n in re.findall(r"\d+", text))
