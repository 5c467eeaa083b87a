"""``python -m theory``: list, run, plot and check the experiments."""

import os
import sys

from theory.threads import VARIABLES


def run() -> int:
    """Load NumPy with one thread for linear algebra, so that the numbers are those of any other machine's worker."""
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    from theory.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
