"""Run every benchmark as a script, one after the other, and write what they print to ``docs/speed.md``.

``python tests/benchmarks/report.py`` on a machine that does nothing else; name some (``attention kit``) to run only
those and print, without writing the page.
"""

import argparse
import os
import platform
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "speed.md"
PREFACE = """\
# Speed

Ratios, each measured within one run of one process on one machine, and printed by
`python tests/benchmarks/report.py` with {versions} on {cores} cores. Seconds depend on the machine; ratios and
exponents less so. No test depends on either. Where there is a goal, or a theory, it stands beside the number.
"""


def versions():
    """Return what the numbers were measured with."""
    found = [f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "torch") if find_spec(name)]
    return f"Python {platform.python_version()}, {', '.join(found)}"


def run(path):
    """Return what one benchmark prints, or its last words."""
    places = [str(HERE.parents[1]), str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False, env=environment)
    return done.stdout.rstrip() if done.returncode == 0 else f"failed: {done.stderr.strip().splitlines()[-1:]}"


def main():
    """Print every benchmark's lines; write the page unless only some were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", metavar="NAME", help="such as attention, for test_attention_speed.py")
    only = parser.parse_args().only
    paths = {path.stem.removeprefix("test_").removesuffix("_speed"): path for path in sorted(HERE.glob("test_*.py"))}
    parts = [PREFACE.format(versions=versions(), cores=len(os.sched_getaffinity(0)))]
    for name in only or paths:
        printed = run(paths[name])
        print(f"== {name}\n{printed}\n", flush=True)
        parts.append(f"## {name}\n\n```text\n{printed}\n```\n")
    if not only:
        PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
