# SPDX-License-Identifier: MIT
"""A short run of the fuzzer, from the corpus that is checked in. Speaks TAP.

run.py SECONDS CORPUS FUZZER
"""
import pathlib
import subprocess
import sys
import tempfile


def main():
    seconds, corpus, fuzzer = sys.argv[1:]
    print("1..1")
    with tempfile.TemporaryDirectory() as found:
        result = subprocess.run(
            [fuzzer, f"-max_total_time={seconds}", "-max_len=600", "-timeout=20",
             "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={found}/",
             found, corpus],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        for line in result.stdout.splitlines():
            if result.returncode or line.startswith("stat::"):
                print("#", line)
        for crash in pathlib.Path(found).glob("*-*"):
            if result.returncode and crash.name.split("-")[0] in ("crash", "leak", "timeout", "oom"):
                print("# input:", crash.read_bytes().hex())
    print("not ok" if result.returncode else "ok", "1 - nothing found in", seconds, "seconds")
    return bool(result.returncode)


sys.exit(main())
