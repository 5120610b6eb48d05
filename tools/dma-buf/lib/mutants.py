#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Reads the file of mutants.

mutants.py FILE list                     a line "NUMBER<tab>FILE: WHAT" for each
mutants.py FILE show NUMBER              all that there is of one
mutants.py FILE apply NUMBER DIR         puts one into DIR, where the core is
mutants.py FILE check DIR                whether each one fits there
"""

import os
import sys


def read(path):
    mutants = []
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.startswith("@ "):
                name, what = line[2:].rstrip("\n").split(": ", 1)
                mutants.append((name, what, []))
            elif line[0] in "-+" and mutants:
                hunks = mutants[-1][2]
                if line[0] == "-" and (not hunks or hunks[-1][1] or hunks[-1][2]):
                    hunks.append(["", "", False])
                hunks[-1][0 if line[0] == "-" else 1] += line[1:]
            elif line.strip() and not line.startswith("#"):
                sys.exit(f"{path}: what is this: {line}")
    return mutants


def mutate(mutant, folder):
    name, what, hunks = mutant
    with open(os.path.join(folder, name), encoding="utf-8") as f:
        text = f.read()
    for old, new, _ in hunks:
        if text.count(old) != 1:
            sys.exit(f"{name}: {what}: these lines are there {text.count(old)} times:\n{old}")
        text = text.replace(old, new)
    return name, text


def main():
    path, verb, *args = sys.argv[1:]
    mutants = read(path)
    if verb == "list":
        for i, (name, what, _) in enumerate(mutants, 1):
            print(f"{i}\t{name}: {what}")
    elif verb == "show":
        print(mutants[int(args[0]) - 1])
    elif verb == "apply":
        name, text = mutate(mutants[int(args[0]) - 1], args[1])
        with open(os.path.join(args[1], name), "w", encoding="utf-8") as f:
            f.write(text)
    elif verb == "check":
        for mutant in mutants:
            mutate(mutant, args[0])
    else:
        sys.exit(__doc__)


main()
