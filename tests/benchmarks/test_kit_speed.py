"""How long the kit takes: importing it, and checking the portable backend on NumPy.

Run this file as a script to print the numbers: ``python tests/benchmarks/test_kit_speed.py``.
"""

import subprocess
import sys
import time

import pytest

FOUR = ("attention", "rat", "biformer", "tc_llava")
CHECK = ("-m", "refattn", "check", "--jobs", "2", *(word for slug in FOUR for word in ("--only", slug)))


def seconds(*command):
    """Wall-clock seconds of a command."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - begin


def import_cost(statement, rounds=5):
    """Seconds that ``statement`` adds to importing NumPy, best of some rounds taken in turn."""
    numpy = min(seconds("-c", "import numpy") for _ in range(rounds))
    return min(seconds("-c", f"import numpy; {statement}") for _ in range(rounds)) - numpy


@pytest.mark.parametrize("statement", ["import refattn", "from refattn.primitives.attention import attention"])
def test_import(benchmark, statement):
    """Importing the package costs little beyond NumPy."""
    benchmark.extra_info["seconds beyond NumPy"] = import_cost(statement)
    benchmark.pedantic(seconds, args=("-c", statement), rounds=3)


def test_check_of_the_portable_backend(benchmark):
    """Four mechanisms, default examples, two processes."""
    benchmark.pedantic(seconds, args=CHECK, rounds=1)


if __name__ == "__main__":
    for line in ("import refattn", "from refattn.primitives.attention import attention"):
        print(f"{line}: {1e3 * import_cost(line):.0f} ms beyond NumPy")
    print(f"refattn check of {', '.join(FOUR)}, two processes: {seconds(*CHECK):.1f} s (goal: 60 s)")
