"""The engine: the same numbers everywhere, killed runs that go on, and folders that are not mixed up."""

import doctest
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from toy.walks import COPY, WALK, Walk

from theory import cells, sweep
from theory.cells import seed_of
from theory.sweep import CellError, execute, grid, plan_of, process_pool, run_experiment
from theory.table import ResultTable

ROOT = Path(__file__).resolve().parents[2]
SMALL = Walk(steps=(8, 32, 128), walkers=200)
TABLES = ("results.csv", "results.jsonl")


def toy(*arguments, threads="1", **options):
    """Start the toy theory's command line."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "toy.walks", *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def bytes_of(folder):
    return [(folder / name).read_bytes() for name in TABLES]


def draw_one(cell, seed):
    """Draw a number; fails at n = 13."""
    if cell["n"] == 13:
        raise ValueError("13 brings bad luck")
    yield {"source": "simulation", "metric": "draw", "value": np.random.default_rng(seed).normal()}


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Table and folder of the toy experiment, computed in this process."""
    folder = tmp_path_factory.mktemp("serial") / "run"
    return run_experiment(WALK, SMALL, seed=3, out=folder), folder


# the same numbers everywhere


def test_two_processes_give_the_bytes_of_one(serial, tmp_path):
    """Table and files are the same, bit for bit."""
    with process_pool(2) as pool:
        assert run_experiment(WALK, SMALL, seed=3, executor=pool, out=tmp_path) == serial[0]
    assert bytes_of(tmp_path) == bytes_of(serial[1])


def test_a_cluster_gives_the_bytes_of_one_process(serial, tmp_path):
    """A dask.distributed cluster of two processes on this machine gives the same files, bit for bit."""
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert run_experiment(WALK, SMALL, seed=3, executor=client, out=tmp_path) == serial[0]
    assert bytes_of(tmp_path) == bytes_of(serial[1])


def test_threads_give_the_numbers_of_one(serial):
    """Any executor will do, threads of this process too."""
    with ThreadPoolExecutor(3) as pool:
        assert run_experiment(WALK, SMALL, seed=3, executor=pool) == serial[0]


def test_the_number_of_blas_threads_that_a_user_sets_changes_nothing(serial, tmp_path):
    """A process that loaded its libraries with four threads computes cells with one."""
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    process = toy(
        "run", "toy/walk", "--set", "steps=8,32,128", "walkers=200", "--seed=3", "--out", tmp_path, threads="4"
    )
    assert process.communicate()[1] == ""
    assert bytes_of(tmp_path) == bytes_of(serial[1])


def test_a_cell_does_not_depend_on_other_cells():
    """A larger grid in another order holds the numbers of the smaller one."""
    few = sweep.sweep(draw_one, grid(n=[1, 2], kind=["a"]), seed=0)
    many = sweep.sweep(draw_one, [{"kind": k, "n": n} for k in "ba" for n in (3, 2, 1)], seed=0)
    for row in few:
        assert many.value(n=row["n"], kind="a") == row["value"]
    assert len(set(many.column("value"))) == 6


def test_rows_stand_in_the_order_of_the_cells_and_know_them():
    """Each row has the coordinates of its cell, the seed and the name of the sweep."""
    table = sweep.sweep(draw_one, grid(n=[5, np.int64(1), 3]), seed=7, name="mine")
    assert [row["n"] for row in table] == [5, 1, 3]
    assert table.rows[0].items() >= {"experiment": "mine", "seed": 7, "n": 5}.items()


def test_seeds_follow_from_seed_name_and_coordinates():
    """Each of the three changes the numbers; the order of coordinates and NumPy's types do not."""

    def state(*arguments):
        return tuple(seed_of(*arguments).generate_state(4))

    one = state(0, "x", {"a": 1, "b": 0.5})
    assert state(0, "x", {"b": np.float64(0.5), "a": np.int32(1)}) == one
    assert len({one, state(1, "x", {"a": 1, "b": 0.5}), state(0, "y", {"a": 1, "b": 0.5}), state(0, "x", {})}) == 4
    # frozen: another number here would silently change every published table
    assert seed_of(0, "x", {"a": 1}).generate_state(1)[0] == 3340451583


# going on after a kill


def wait_for_cells(folder, count, process):
    deadline = time.monotonic() + 30
    while len(list((folder / "cells").glob("[!.]*"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process):
    """Kill without a word; pipes are closed, since workers that stay behind would keep them open."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(jobs, tmp_path):
    """Killed after half of its cells and run again, a sweep leaves the bytes of one that was not killed."""
    changed = ["--set", "walkers=50", "pause=0.1", "--jobs", jobs]
    process = toy("run", "toy/walk", *changed, "--out", tmp_path / "killed")
    wait_for_cells(tmp_path / "killed", 6, process)
    kill(process)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "cells").glob("[!.]*")}
    assert 6 <= len(kept) < 12
    assert not (tmp_path / "killed" / "results.csv").exists()

    again = toy("run", "toy/walk", *changed, "--out", tmp_path / "killed")
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    with ThreadPoolExecutor(12) as pool:
        run_experiment(WALK, Walk(walkers=50, pause=0.1), executor=pool, out=tmp_path / "whole")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """No process stays behind when the one that started it is killed."""
    psutil = pytest.importorskip("psutil", reason="psutil is not installed")
    process = toy("run", "toy/walk", "--set", "pause=0.2", "--jobs=2", "--out", tmp_path)
    wait_for_cells(tmp_path, 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    kill(process)
    _, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        child.kill()
    assert not alive


def test_what_is_there_is_not_computed_again(serial):
    """A finished folder gives its table without computing a cell."""
    broken = plan_of(WALK, SMALL, 3)
    again = execute([broken], out=[serial[1]], progress=False)[0]
    assert again == serial[0]
    before = {path: path.stat().st_mtime_ns for path in (serial[1] / "cells").iterdir()}
    run_experiment(WALK, SMALL, seed=3, out=serial[1])
    assert {path: path.stat().st_mtime_ns for path in (serial[1] / "cells").iterdir()} == before


def test_a_sweep_can_grow(tmp_path):
    """More cells in the same folder: those that are there stay, and the table has all that is asked for."""
    sweep.sweep(draw_one, grid(n=[1, 2]), seed=0, out=tmp_path)
    grown = sweep.sweep(draw_one, grid(n=[0, 1, 2]), seed=0, out=tmp_path)
    assert grown == sweep.sweep(draw_one, grid(n=[0, 1, 2]), seed=0)
    assert ResultTable.from_jsonl(tmp_path / "results.jsonl") == grown


# what is refused


@pytest.mark.parametrize(
    ("experiment", "parameters", "seed", "message"),
    [
        (WALK, SMALL, 4, "its seed is 3, not 4"),
        (WALK, Walk(steps=(8,), walkers=200), 3, "its parameters.steps is"),
        (COPY, SMALL, 3, "its experiment is 'toy/walk', not 'toy/copy'"),
    ],
)
def test_a_folder_with_other_cells_is_refused(serial, experiment, parameters, seed, message):
    """The first difference is named, and nothing in the folder changes."""
    before = bytes_of(serial[1])
    with pytest.raises(ValueError, match=message):
        run_experiment(experiment, parameters, seed=seed, out=serial[1])
    assert bytes_of(serial[1]) == before


def test_cells_of_edited_code_are_not_gone_on_with(tmp_path, monkeypatch):
    """A change in the text of the function is a difference as any other."""
    sweep.sweep(draw_one, grid(n=[1]), seed=0, out=tmp_path)
    monkeypatch.setattr(sweep.inspect, "getsource", lambda _function: "other text")
    with pytest.raises(ValueError, match="another run: its source is"):
        sweep.sweep(draw_one, grid(n=[1, 2]), seed=0, out=tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path):
    """Files without a manifest, a broken manifest and a file in the place of the folder are no place for a run."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds files but no manifest\.json"):
        run_experiment(WALK, SMALL, out=tmp_path)
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        run_experiment(WALK, SMALL, out=tmp_path / "thesis.tex")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"no manifest\.json that can be read"):
        run_experiment(WALK, SMALL, out=tmp_path)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_cell_is_named_and_the_others_are_kept(jobs, tmp_path):
    """The message holds sweep, cell and reason; what was computed before is in the folder."""
    parameters = Walk(steps=(8, 32), walkers=20, diverge=True)
    message = r"toy/walk stopped in cell steps=32, replica=\d: the walk diverges at step 17, loss nan"
    with process_pool(jobs) as pool, pytest.raises(CellError, match=message) as caught:
        run_experiment(WALK, parameters, executor=pool, out=tmp_path)
    assert isinstance(caught.value.__cause__, FloatingPointError)
    assert len(list((tmp_path / "cells").iterdir())) >= 4
    assert not (tmp_path / "results.csv").exists()


def test_one_sweep_that_stops_does_not_stop_the_others():
    """Sweeps that run side by side fail alone."""
    plans = [sweep.Plan("bad", draw_one, grid(n=[12, 13, 14]), 0), sweep.Plan("good", draw_one, grid(n=[12]), 0)]
    bad, good = execute(plans)
    assert "bad stopped in cell n=13: 13 brings bad luck" in str(bad)
    assert len(good) == 1


def test_a_mistake_in_the_code_keeps_its_traceback():
    """What is no ValueError or ArithmeticError is a bug: it is raised as it is, with a note about the cell."""
    with pytest.raises(KeyError) as caught:
        sweep.sweep(draw_one, grid(m=[1]), seed=0)
    assert caught.value.__notes__ == ["in draw_one, cell m=1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cells": grid(n=[1, 1])}, "occurs twice"),
        ({"cells": [{"n": [1]}]}, r"n=\[1\] is not a finite number"),
        ({"cells": [{"n": float("nan")}]}, "n=nan is not a finite number"),
        ({"seed": -1}, "seed=-1 is not an integer >= 0"),
        ({"seed": 0.5}, "seed=0.5 is not an integer >= 0"),
        ({"executor": "four"}, "executor='four' has neither submit nor get_executor"),
        ({"function": partial(draw_one)}, "has no name of its own"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    """What is wrong is named with its value."""
    with pytest.raises(ValueError, match=message):
        sweep.sweep(**{"function": draw_one, "cells": grid(n=[1]), "seed": 0, **given})


def test_at_least_one_process():
    """A pool of nobody is refused."""
    with pytest.raises(ValueError, match="jobs=0 is not an integer >= 1"), process_pool(0):
        pass


@pytest.mark.parametrize("module", [sweep, cells])
def test_the_examples_in_the_docstrings_are_true(module):
    """What a docstring shows is what happens."""
    assert doctest.testmod(module).failed == 0
