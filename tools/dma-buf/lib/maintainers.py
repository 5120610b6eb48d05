# SPDX-License-Identifier: GPL-2.0
"""maintainers.py OURS THEIRS: every entry of OURS stands in THEIRS, word for word."""

import re
import sys


def entries(path):
    text = open(path, encoding="utf-8").read()
    blocks = re.split(r"\n\s*\n", text)
    return [b.strip() for b in blocks if re.search(r"^[MLSFK]:\t", b, re.M)]


ours, theirs = entries(sys.argv[1]), set(entries(sys.argv[2]))
missing = [e for e in ours if e not in theirs]
for entry in missing:
    print("not in the tree's MAINTAINERS:\n" + entry, file=sys.stderr)
sys.exit(1 if missing or not ours else 0)
