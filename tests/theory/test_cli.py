"""``python -m theory``: what it prints, what it keeps, and when it complains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy.walks import COPY, WALK, Walk

from theory import cli, experiment
from theory.experiment import Experiment, choose, find, parameters_of
from theory.report import Outcome, check_lines
from theory.sweep import run_experiment
from theory.verdict import between, close

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def theory(capsys):
    """Run the command line with toy experiments; returns exit code, output and errors."""

    def run(*arguments, known=(WALK, COPY)):
        code = cli.main([str(argument) for argument in arguments], known)
        return code, *capsys.readouterr()

    return run


def nobody(_table, _parameters):
    """Predict nothing."""
    return []


# list


def test_list_names_experiments_cells_and_defaults(theory):
    """Each default is written as --set takes it."""
    code, out, _ = theory("list")
    assert code == 0
    assert "toy/walk (12 cells): How far a random walk gets\n    steps=16,64,256\n    walkers=300\n" in out
    assert "    predicted_size=none\n    diverge=false\n" in out


def test_list_is_json_too(theory):
    """The same as JSON, with what --quick changes."""
    rows = json.loads(theory("list", "--json")[1])
    assert [row["name"] for row in rows] == ["toy/walk", "toy/copy"]
    assert rows[0]["quick"] == {"steps": [4, 16]}


def test_a_default_that_is_written_reads_back():
    """What list prints can be given to --set."""
    from theory.parameters import defaults_of, parse_changes

    changes = [f"{key}={text}" for key, text in defaults_of(WALK).items()]
    assert parameters_of(WALK, parse_changes(WALK, changes)) == Walk()


# run


def test_run_prints_a_table_and_says_where_it_is(theory, tmp_path):
    """The table leaves out what is the same in each row; the folder holds all of it."""
    code, out, err = theory("run", "toy/walk", "--set", "steps=4,9", "walkers=50", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["metric", "source", "value", "stderr", "steps", "replica"]
    assert out.endswith(f"16 rows in {tmp_path / 'results.csv'}\n")
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == (
        "experiment,source,metric,value,stderr,seed,steps,replica"
    )
    assert max(map(len, out.splitlines()[:-1])) <= 110


def test_set_reads_every_type(theory, tmp_path):
    """Numbers, booleans, tuples, choices and optional values are read by the field's type."""
    changes = ["steps=4,9", "walkers=20", "size=2", "law=sign", "predicted_size=none", "pause=1e-3", "diverge=no"]
    assert theory("run", "toy/walk", "--set", *changes, "--out", tmp_path)[0] == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["parameters"] == {
        "steps": [4, 9], "walkers": 20, "size": 2.0, "law": "sign", "predicted_size": None, "diverge": False,
        "pause": 0.001,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "toy/wlak"], "experiment 'toy/wlak' is unknown; did you mean toy/walk"),
        (["run", "walk"], "experiment 'walk' is unknown; did you mean toy/walk?"),
        (["run", "qqq"], "experiment 'qqq' is unknown; known are toy/copy, toy/walk"),
        (["check", "tov"], "experiment 'tov' is unknown; did you mean toy"),
        (["run", "toy/walk", "--set", "walker=3"], "toy/walk has no parameter 'walker'; did you mean walkers?"),
        (["run", "toy/walk", "--set", "walkers"], "'walkers' is not of the form key=value"),
        (["run", "toy/walk", "--set", "walkers=3", "walkers=4"], "'walkers' is set twice"),
        (["run", "toy/walk", "--set", "walkers=3.5"], "walkers=3.5: expected an integer"),
        (["run", "toy/walk", "--set", "walkers=1"], "walkers=1 is not an integer >= 2"),
        (["run", "toy/walk", "--set", "size=big"], "size=big: expected a number"),
        (["run", "toy/walk", "--set", "predicted_size=x"], "predicted_size=x: expected a number"),
        (["run", "toy/walk", "--set", "diverge=perhaps"], "diverge=perhaps: expected true or false"),
        (["run", "toy/walk", "--set", "law=cauchy"], "law=cauchy: expected one of normal, sign"),
        (["run", "toy/walk", "--set", "steps=4,x"], "steps=4,x: expected an integer in each place"),
        (["run", "toy/walk", "--jobs", "0"], "jobs=0 is not an integer >= 1"),
        (["run", "toy/walk", "--seed", "-1"], "seed=-1 is not an integer >= 0"),
        (["check", "--set", "walkers=3"], "--set changes the parameters of one experiment, not of 2"),
        (["plot", "--out", "one.svg"], "--out one.svg is one file, not 2 figures"),
        (["plot", "toy/walk", "--from", "nowhere"], "--from nowhere holds no finished run of toy/walk"),
    ],
)
def test_misuse_is_a_sentence_and_exit_code_2(theory, arguments, message):
    """The message names the near ones or says what was expected; there is no traceback."""
    code, out, err = theory(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("theory: ")
    assert message in err


def test_a_run_that_diverges_says_where(theory):
    """Experiment, cell and the reason are printed, the exit code is 1."""
    code, _, err = theory("run", "toy/walk", "--set", "diverge=true")
    assert code == 1
    assert err == "theory: toy/walk stopped in cell steps=64, replica=0: the walk diverges at step 17, loss nan\n"


def test_another_runs_folder_is_refused(theory, tmp_path):
    """A second run with another seed does not overwrite the first."""
    assert theory("run", "toy/walk", "--quick", "--out", tmp_path)[0] == 0
    code, _, err = theory("run", "toy/walk", "--quick", "--seed", 1, "--out", tmp_path)
    assert code == 2
    assert "holds the cells of another run: its seed is 0, not 1" in err


# check


def test_check_prints_one_line_for_each_prediction(theory):
    """Measured, predicted, standard error, distance and bound, verdict; then a sentence about all."""
    code, out, _ = theory("check", "--jobs", 1)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["prediction", "measured", "predicted", "stderr", "distance", "of", "bound"]
    assert lines[1] == "toy/walk: How far a random walk gets"
    assert lines[2].startswith("  squared distance after 16 steps")
    assert lines[2].endswith("of 4  holds")
    assert lines[-1].startswith("12 predictions of 2 experiments: all hold (")
    assert max(map(len, lines)) <= 110


def test_a_prediction_that_falls_out_fails_the_check(theory):
    """A wrong prediction is marked, counted, and makes the exit code 1."""
    code, out, _ = theory("check", "toy/walk", "--jobs", 1, "--set", "predicted_size=1.5")
    assert code == 1
    assert out.count("FAILS") == 3
    assert "6 predictions of 1 experiment: 3 failed" in out


def test_an_experiment_that_stops_fails_the_check(theory):
    """A run without a result counts as a failure, not as nothing."""
    code, out, _ = theory("check", "toy/walk", "--jobs", 1, "--set", "diverge=true")
    assert code == 1
    assert "FAILS: toy/walk stopped in cell steps=64, replica=0: the walk diverges" in out


def test_a_check_of_nothing_is_no_success(theory):
    """Where nothing is predicted nothing holds."""
    silent = Experiment("toy/silent", "Says nothing", Walk, WALK.simulate, nobody, WALK.draw)
    code, _, err = theory("check", "--jobs", 1, known=[silent_with_cells(silent)])
    assert code == 1
    assert "nothing was predicted" in err


def silent_with_cells(silent):
    from dataclasses import replace

    return replace(silent, cells=lambda _parameters: [{"steps": 4}])


def test_check_names_a_whole_theory_and_is_json_too(theory):
    """The family stands for its experiments; numbers that are not finite are null."""
    rows = json.loads(theory("check", "toy", "--quick", "--jobs", 1, "--json")[1])
    assert [row["experiment"] for row in rows] == ["toy/walk", "toy/copy"]
    assert rows[0]["checks"][0]["verdict"] == "holds"
    assert rows[0]["checks"][1]["stderr"] is None


def test_lines_say_what_the_bound_is():
    """A relative bound is in percent, a range shows its ends."""
    checks = (close("share", 1.02, 1.0, relative=0.05), between("slope", 0.52, 0.4, 0.6, stderr=0.01))
    _, share, slope = check_lines(Outcome(WALK, checks))
    assert share.split()[1:] == ["1.02", "1", "–", "2", "%", "of", "5", "%", "holds"]
    assert slope.split()[1:] == ["0.52", "0.01", "0.4", "to", "0.6", "holds"]


def test_what_fails_is_named_in_full():
    """A line is cut at the end of its name; one that fails is followed by the whole name."""
    long = "error of the estimator, divided by what the theory of large matrices predicts for it"
    assert check_lines(Outcome(WALK, (close(long, 1.0, 1.0, relative=0.05),)))[1:][0].startswith(f"  {long[:52]}…  ")
    assert check_lines(Outcome(WALK, (close(long, 2.0, 1.0, relative=0.05),)))[2] == f"    {long}"


def test_verdicts_are_filed_for_the_site(theory, tmp_path, monkeypatch):
    """Experiments that were not run keep what is on file, and the command is written down."""
    monkeypatch.setattr(cli, "CHECKS", tmp_path / "theory-checks.json")
    theory("check", "--quick", "--jobs", 1, "--write-docs")
    theory("check", "toy/walk", "--seed", 5, "--jobs", 1, "--write-docs")
    filed = json.loads((tmp_path / "theory-checks.json").read_text())
    assert filed["toy/copy"]["command"] == "python -m theory check toy/copy --quick"
    assert filed["toy/walk"]["command"] == "python -m theory check toy/walk --seed 5"
    assert len(filed["toy/walk"]["checks"]) == 6


# plot


def test_a_figure_has_the_same_bytes_each_time(theory, tmp_path):
    """Drawn anew or from a kept run, after any style settings, the SVG is the same."""
    import matplotlib as mpl

    assert theory("plot", "toy/walk", "--quick", "--jobs", 1, "--out", tmp_path / "a")[1] == (
        f"{tmp_path / 'a' / 'theory-toy-walk.svg'}\n"
    )
    theory("run", "toy/walk", "--quick", "--out", tmp_path / "kept")
    with mpl.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        theory("plot", "toy/walk", "--from", tmp_path / "kept", "--out", tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a" / "theory-toy-walk.svg").read_bytes()


def test_what_check_kept_can_be_drawn(theory, tmp_path):
    """A folder for each experiment is kept, and plot finds them."""
    theory("check", "--quick", "--jobs", 1, "--out", tmp_path / "kept")
    code, out, _ = theory("plot", "--from", tmp_path / "kept", "--out", tmp_path / "figures")
    assert code == 0
    assert [Path(line).name for line in out.splitlines()] == ["theory-toy-walk.svg", "theory-toy-copy.svg"]


# the experiments of the package


def test_a_theory_without_experiments_is_an_error_only_when_asked_for(monkeypatch):
    """Others can be listed and run meanwhile."""
    monkeypatch.setattr(experiment, "_theories", lambda: ["lost"])
    monkeypatch.setattr(experiment.importlib.util, "find_spec", lambda _name: None)
    assert experiment.experiments.__wrapped__() == {}
    with pytest.raises(ValueError, match=r"theory/lost has no experiments\.py with EXPERIMENTS"):
        find("lost/figure")


def test_names_choose_experiments_or_theories():
    """Each is chosen once, in the order of the names."""
    known = {e.name: e for e in (WALK, COPY)}
    assert choose(["toy/copy", "toy"], known) == [COPY, WALK]
    assert choose([], known) == [WALK, COPY]


@pytest.mark.parametrize("name", experiment.experiments())
def test_every_experiment_is_named_after_its_package_and_quick_is_valid(name):
    """Names are theory/figure, quick parameters pass their own checks, and cells are distinct scalars."""
    from theory.sweep import plan_of

    e = experiment.experiments()[name]
    assert name.split("/")[0] in experiment._theories()
    assert e.simulate.__module__.startswith(f"theory.{e.family}.")
    assert plan_of(e, parameters_of(e, quick=True), 0).cells
    assert plan_of(e, e.parameters(), 0).cells


def test_the_module_runs_as_a_command():
    """``python -m theory`` lists, and refuses what it does not know without a traceback."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "theory", "run", "no/such"], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 2
    assert done.stderr.startswith("theory: experiment 'no/such' is unknown")


def test_a_table_can_be_computed_from_python():
    """The library gives what the command line prints."""
    assert len(run_experiment(WALK, parameters_of(WALK, {"walkers": 20}, quick=True))) == 16
