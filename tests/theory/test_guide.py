"""The guide to sweeps: its programs run and its commands are understood."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from theory.cli import _parser
from theory.experiment import choose, experiments
from theory.experiment import parameters_of as changed
from theory.parameters import parse_changes

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "run-your-own-sweep.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r'```python title="(\S+)"\n(.*?)```', GUIDE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Run a command in a folder that holds the guide's programs."""
    folder = tmp_path_factory.mktemp("guide")
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

    def run(command):
        words = [sys.executable if word == "python" else word for word in command.split()]
        return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout

    return run


def test_a_function_of_ones_own(shell):
    """The program of the guide gives its table and leaves its folder."""
    lines = shell("python recall.py").splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("d =  16  n =   4  error 0.1")


def test_a_cluster_gives_the_same_file(shell):
    """The two commands that follow each other in the guide do what it says."""
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    shell("python recall.py")
    assert shell("python recall_dask.py") == "12 rows\n"
    assert shell("cmp recall/results.csv recall-dask/results.csv") == ""


def test_an_experiment_of_ones_own(shell):
    """Its commands list, check, run and draw it."""
    commands = [command for command in COMMANDS if "my_theory.py" in command]
    assert [command.split()[2] for command in commands] == ["list", "check", "run", "plot"]
    listed, checked, _, drawn = map(shell, commands)
    assert listed.startswith("walks/distance (3 cells)")
    assert "3 predictions of 1 experiment: all hold" in checked
    assert drawn == "walks.svg\n"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m theory")])
def test_commands_name_what_there_is(command):
    """Every option, experiment and parameter in the guide's commands is known."""
    options = _parser().parse_args(command.split()[3:])
    names = [options.name] if isinstance(getattr(options, "name", []), str) else getattr(options, "name", [])
    for experiment in choose(names, experiments()) if names else ():
        assert changed(experiment, parse_changes(experiment, getattr(options, "set", [])))
