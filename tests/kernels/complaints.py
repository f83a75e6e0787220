# SPDX-License-Identifier: MIT
"""What in a kernel's log fails a run: signs of a bug, not of a bad machine."""

import re

SIGNS = re.compile("|".join([
    # WARN(), and what lockdep has to say; not advice on processor bugs.
    r"WARNING: (?!Unprivileged eBPF|See https:)",
    r"\bBUG: |kernel BUG at",                  # BUG(), soft lockups, bad page state
    r"\bOops\b",
    r"Kernel panic",
    r"Unable to handle kernel",
    r"general protection fault",
    r"Internal error:",
    r"INFO: task .* blocked for more than",
    r"INFO: .*(detected stall|stalls on CPU|self-detected)",
    r"INFO: trying to register non-static key",
    r"(list_add|list_del|refcount_t|ODEBUG|UBSAN|KASAN|KFENCE)\b.*:",
    r"debugfs: .*[Dd]irectory .*already present",
]))

# A VM's fd has the number of one that was never freed. Some programs do that on purpose, and
# look themselves whether VMs are left.
REUSED_NUMBER = re.compile(r"KVM: debugfs: duplicate directory")
REUSES_NUMBERS = {"identity"}

# How much of what follows a complaint belongs to it.
FOLLOWING = 25


class KernelLog:
    """Picks the complaints out of a kernel's log, with the lines after each."""

    def __init__(self, program=None):
        self._left = 0
        self._may_reuse_numbers = program in REUSES_NUMBERS

    def complaint(self, line):
        """True if LINE is part of a complaint."""
        if (SIGNS.search(line) or
                REUSED_NUMBER.search(line) and not self._may_reuse_numbers):
            self._left = FOLLOWING + 1
        self._left -= 1
        return self._left >= 0
