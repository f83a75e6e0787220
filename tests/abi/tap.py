# SPDX-License-Identifier: MIT
"""Tests that are functions, run in order and reported as TAP."""
import sys
import traceback


class Skip(Exception):
    """Raised with the reason why a test cannot run here."""


def note(text):
    for line in str(text).splitlines():
        print("#", line)


def check(condition, *explanation):
    """Fail the test, saying why, unless condition is true."""
    if not condition:
        raise AssertionError(" ".join(str(part) for part in explanation))


def equal(got, expected, what):
    check(got == expected, f"{what}: got {got!r}, expected {expected!r}")


def run(tests):
    """Run the functions; their names, with spaces, are the claims."""
    failed = 0
    print(f"1..{len(tests)}")
    for number, test in enumerate(tests, 1):
        claim = test.__name__.replace("_", " ")
        try:
            test()
            print(f"ok {number} - {claim}")
        except Skip as reason:
            print(f"ok {number} - {claim} # SKIP {reason}")
        except Exception as error:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {claim}")
            note(error if isinstance(error, AssertionError) else traceback.format_exc())
        sys.stdout.flush()
    sys.exit(failed != 0)
