"""The experiments on conditioned memories: predictions hold, seeds decide everything, figures can be drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from theory.experiment import parameters_of
from theory.pavlovian.experiments import EXPERIMENTS
from theory.table import ResultTable

BY_NAME = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name.partition("/")[2])


def run(experiment, seed=0):
    parameters = parameters_of(experiment, quick=True)
    cells = experiment.cells(parameters)
    rows = (
        row
        for number, cell in enumerate(cells)
        for row in experiment.simulate(parameters, cell, np.random.SeedSequence([seed, number]))
    )
    return ResultTable(rows), parameters


@BY_NAME
def test_predictions_hold_and_figures_can_be_drawn(experiment):
    """Every check of the quick run holds, and its figure has panels."""
    table, parameters = run(experiment)
    checks = list(experiment.checks(table, parameters))
    assert checks
    assert [check for check in checks if not check.holds] == []
    figure = Figure()
    experiment.draw(table, figure)
    assert figure.axes


def test_the_same_seed_gives_the_same_rows():
    """A cell is a pure function of its seed."""
    snr = EXPERIMENTS[0]
    assert run(snr)[0] == run(snr)[0]
    assert run(snr)[0] != run(snr, seed=1)[0]


def test_parameters_out_of_range_are_refused():
    """Negative numbers, lists of different lengths and even votes name their field."""
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    for name, changes, rule in (
        ("pavlovian/snr", {"trials": 0}, "trials=0 must be > 0"),
        ("pavlovian/snr", {"counts": (1,)}, "counts, dims hold"),
        ("pavlovian/cleanup", {"heads": (2,)}, "must be odd"),
        ("pavlovian/dense_memory", {"degree": 1}, "degree=1"),
    ):
        with pytest.raises(ValueError, match=rule):
            parameters_of(by_name[name], changes)
