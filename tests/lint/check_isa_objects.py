#!/usr/bin/env python3
"""Checks that code compiled for one instruction set cannot reach machines that lack it.

usage: check_isa_objects.py BUILD_FOLDER

An inline function or template instance in an object file is a weak symbol: the linker keeps one copy
for the whole program, perhaps the one compiled with AVX-512. So the objects of *_avx2.cc and
*_avx512.cc must define none.
"""
import pathlib
import subprocess
import sys


def weak_symbols(path):
    listing = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True,
                             check=True).stdout
    for line in listing.splitlines():
        _, kind, name = line.split(" ", 2)
        if kind in "WVu":
            yield name


def main(arguments):
    if len(arguments) != 1:
        sys.exit(__doc__)
    objects = [path for isa in ("avx2", "avx512")
               for path in sorted(pathlib.Path(arguments[0]).rglob(f"*_{isa}*.cc.o"))]
    if not objects:
        sys.exit(f"{arguments[0]}: no object of an instruction set; is the project built?")
    leaks = [(path, name) for path in objects for name in weak_symbols(path)]
    for path, name in leaks:
        print(f"{path.name}: weak symbol {name}")
    print(f"{len(objects)} objects, {len(leaks)} weak symbols")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
