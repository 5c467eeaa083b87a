"""The experiments of random-feature attention: pure cells, parameters that are refused, checks and figures."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from theory.experiment import parameters_of
from theory.random_feature_heads.experiments import EXPERIMENTS
from theory.random_feature_heads.experiments_curves import Curves, Tokens
from theory.random_feature_heads.experiments_risks import Linear, RandomFeatures, Spectrum
from theory.random_feature_heads.experiments_widths import Concentration, Widths
from theory.random_feature_heads.summaries import best_mean, mean_of
from theory.table import ResultTable

BY_NAME = {experiment.name.partition("/")[2]: experiment for experiment in EXPERIMENTS}
TINY = {
    "tokens": {"all_keys": (4, 32), "n_heads": 60, "targets": ("f1:1",), "replicas": 1, "n_test": 100, "ns": (256,)},
    "width": {"d": 3, "n_keys": 2, "n": 40, "n_test": 100, "ms": (4, 10, 30, 60), "replicas": 1},
    "spectrum": {"inputs": 300, "n_heads": 60, "n_test": 200, "ns": (64,), "replicas": 1},
    "ridgeless": {"n": 30, "draws": 4, "ratios": (0.5, 2.0)},
    "kernel": {"inputs": 8, "replicas": 2, "ms": (50, 200)},
}


@pytest.mark.parametrize("name", TINY)
def test_cells_are_pure_and_checks_and_figures_follow(name):
    """The same seed gives the same rows, checks hold numbers, and the figure has axes."""
    experiment = BY_NAME[name]
    p = parameters_of(experiment, TINY[name])
    cells = experiment.cells(p)
    one, two = (
        ResultTable(row for cell in cells for row in experiment.simulate(p, cell, np.random.SeedSequence(3)))
        for _ in range(2)
    )
    assert one == two
    assert all(np.isfinite(check.measured) for check in experiment.checks(one, p))
    figure = Figure()
    experiment.draw(one, figure)
    assert figure.get_axes()


@pytest.mark.parametrize("name", BY_NAME)
def test_every_experiment_says_what_it_shows(name):
    """Names, titles and quick parameters are those of the theory, and a quick run has cells."""
    experiment = BY_NAME[name]
    assert experiment.family == "random_feature_heads"
    assert experiment.title
    assert experiment.cells(parameters_of(experiment, quick=True))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Curves(ns=(1,)), "ns="),
        (lambda: Curves(ridges=(0.0,)), "ridges="),
        (lambda: Tokens(all_keys=()), "all_keys="),
        (lambda: Widths(ms=(0, 3)), "ms="),
        (lambda: Concentration(replicas=0), "replicas=0"),
        (lambda: Spectrum(inputs=10), "inputs=10"),
        (lambda: RandomFeatures(psi1=(1.0,)), "equal lengths"),
        (lambda: Linear(ratios=(1.0,)), "ratios="),
    ],
)
def test_parameters_out_of_range_are_refused(make, rule):
    """Field, value and rule stand in the message."""
    with pytest.raises(ValueError, match=rule):
        make()


def test_means_are_over_the_rows_that_are_asked_for():
    """Mean and standard error over replicas, and the smallest mean over ridges."""
    rows = [
        {"source": "simulation", "metric": "test_error", "value": value, "ridge_rel": ridge}
        for ridge, value in ((0.1, 1.0), (0.1, 3.0), (0.2, 1.5), (0.2, 1.5))
    ]
    table = ResultTable(rows)
    assert mean_of(table, ridge_rel=0.1)[:2] == (2.0, 1.0)
    assert best_mean(table, metric="test_error").value == 1.5
    with pytest.raises(ValueError, match="no row has"):
        mean_of(table, ridge_rel=0.3)
