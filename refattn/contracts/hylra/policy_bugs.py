"""Mistakes that people make when layers are chosen, each one step of trying all policies exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.hylra import plain_policy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refattn.conformance.contract import Case

__all__ = ["MAX_MIN_BUGS", "MIN_FULL_BUGS"]


def compared_with_the_layer_before(M: np.ndarray, source: list[int]) -> Any:
    """Return what each reusing layer shares, by table."""
    return np.array([[table[j - 1, j] for j, i in enumerate(source) if i != j] for table in M])


def compared_with_the_first_layer(M: np.ndarray, source: list[int]) -> Any:
    """Return what each reusing layer shares, by table."""
    return np.array([[table[0, j] for j, i in enumerate(source) if i != j] for table in M])


def fits_on_average(shared: np.ndarray, threshold: float) -> Any:
    """Say whether the reused sets fit."""
    return shared.size == 0 or shared.mean() >= threshold


def fits_somewhere(shared: np.ndarray, threshold: float) -> Any:
    """Say whether the reused sets fit."""
    return shared.size == 0 or shared.max() >= threshold


def sensitive_layers_forgotten(_source: list[int], _sensitive: Iterable[int]) -> bool:
    """Say whether the sensitive layers are treated as they must be."""
    return True


def no_reuse_of_sensitive_layers(source: list[int], sensitive: Iterable[int]) -> bool:
    """Say whether the sensitive layers are treated as they must be."""
    return all(source.count(j) == 1 for j in sensitive)


def best_overlap_first(n_full: int, total: float, _bottleneck: float) -> tuple[float, ...]:
    """Return what is maximised."""
    return (total, -n_full)


def any_of_the_smallest(n_full: int, _total: float, _bottleneck: float) -> tuple[float, ...]:
    """Return what is maximised."""
    return (-n_full, 0.0)


def bottleneck_instead_of_sum(n_full: int, _total: float, bottleneck: float) -> tuple[float, ...]:
    """Return what is maximised."""
    return (-n_full, bottleneck)


def seen_as_any_layer(M: np.ndarray, _sensitive: Iterable[int]) -> Any:
    """Return the tables to search, given those that were measured."""
    return M


def rows_only(M: np.ndarray, sensitive: Iterable[int]) -> Any:
    """Return the tables to search, given those that were measured."""
    M = M.copy()
    for layer in sensitive:
        M[:, layer, :] = 0.0
        M[:, layer, layer] = 1.0
    return M


def changes_taken_for_full_layers(n_full: int, max_changes: int) -> bool:
    """Say whether a policy is within its budget."""
    return n_full <= max(max_changes, 1)


def budget_forgotten(_n_full: int, _max_changes: int) -> bool:
    """Say whether a policy is within its budget."""
    return True


def sum_first(shared: np.ndarray, n_full: int) -> tuple[Any, Any]:
    """Return what is maximised, first and second."""
    return shared.sum() + len(shared) * n_full, shared.min(initial=1.0)


def full_layers_not_counted(shared: np.ndarray, _n_full: int) -> tuple[Any, Any]:
    """Return what is maximised, first and second."""
    return shared.min(initial=1.0), shared.sum()


def only_the_minimum(shared: np.ndarray, _n_full: int) -> tuple[Any, Any]:
    """Return what is maximised, first and second."""
    return shared.min(initial=1.0), 0.0


def tables_averaged(M: np.ndarray) -> Any:
    """Return the tables among which the worst counts."""
    return M.mean(axis=0, keepdims=True)


def first_table_only(M: np.ndarray) -> Any:
    """Return the tables among which the worst counts."""
    return M[:1]


def one_pass_for_both(_method: str) -> bool:
    """Say whether the official search is asked for."""
    return True


def most_similar_full_layer(M: np.ndarray, source: list[int]) -> list[int]:
    """Return the layer that each layer reads, given that of the search."""
    full = sorted(set(source))
    return [
        i if i == j else max((f for f in full if f < j), key=lambda f: M[:, f, j].sum()) for j, i in enumerate(source)
    ]


def full_layers_in_the_total(shared: np.ndarray, n_full: int) -> Any:
    """Return the total of a policy."""
    return shared.sum() + len(shared) * n_full


def _several(case: Case) -> bool:
    return bool(case.arrays["similarity"].shape[-1] > 2)


def _must(case: Case) -> bool:
    return bool(_several(case) and any(case.options.get("sensitive", ())))


def _exact(case: Case) -> bool:
    return bool(_several(case) and case.options.get("method", "exact") == "exact")


MIN_FULL_BUGS = tuple(
    mistake.planted(plain_policy.saving, "few_")
    for mistake in (
        Mistake(
            "cells",
            compared_with_the_layer_before,
            "each layer is compared with its neighbour, so chains drift away from their source",
            "Compare with the layer whose set is reused.",
            _several,
        ),
        Mistake(
            "cells",
            compared_with_the_first_layer,
            "each layer is compared with layer 0",
            "Compare with the layer whose set is reused.",
            _several,
        ),
        Mistake(
            "read",
            most_similar_full_layer,
            "a layer reads the most similar full layer, not the last one",
            "Only the set of the last full layer is kept.",
            _several,
        ),
        Mistake(
            "summed",
            full_layers_in_the_total,
            "the total counts 1 for every full layer",
            "The total adds overlaps of reusing layers.",
            _several,
        ),
        Mistake("fits", fits_on_average, "sets fit on average", "Every reused set must fit.", _several),
        Mistake("fits", fits_somewhere, "one set fits", "Every reused set must fit.", _several),
        Mistake(
            "keeps",
            sensitive_layers_forgotten,
            "sensitive layers may reuse",
            "A sensitive layer is full.",
            _must,
        ),
        Mistake(
            "keeps",
            no_reuse_of_sensitive_layers,
            "sensitive layers are full, but nobody reads their sets",
            "Under this objective a sensitive layer is a source like any other.",
            _must,
        ),
        Mistake(
            "preferred",
            best_overlap_first,
            "the sum comes before the number of full layers",
            "Few full layers first.",
            _several,
        ),
        Mistake(
            "preferred", any_of_the_smallest, "the sum is ignored", "Among the smallest take the largest sum.", _several
        ),
        Mistake(
            "preferred",
            bottleneck_instead_of_sum,
            "the worst overlap decides among the smallest",
            "Among the smallest take the largest sum.",
            _several,
        ),
    )
)
MAX_MIN_BUGS = tuple(
    mistake.planted(plain_policy.balancing, "worst_")
    for mistake in (
        Mistake(
            "cells",
            compared_with_the_layer_before,
            "each layer is compared with its neighbour",
            "Compare with the layer whose set is reused.",
            _exact,
        ),
        Mistake(
            "read",
            most_similar_full_layer,
            "a layer reads the most similar full layer, not the last one",
            "Only the set of the last full layer is kept.",
            _several,
        ),
        Mistake(
            "summed",
            full_layers_in_the_total,
            "the total counts 1 for every full layer",
            "The total adds overlaps of reusing layers.",
            _several,
        ),
        Mistake("blinded", seen_as_any_layer, "sensitive layers are not blinded", "Set their cells to 0.", _must),
        Mistake("blinded", rows_only, "sensitive layers may still reuse", "Set rows and columns of them to 0.", _must),
        Mistake(
            "allowed",
            changes_taken_for_full_layers,
            "the budget counts layer 0 as a change",
            "At most max_changes full layers beside layer 0.",
            lambda case: _exact(case) and case.options["max_changes"] < case.arrays["similarity"].shape[-1],
        ),
        Mistake(
            "allowed",
            budget_forgotten,
            "the budget is ignored",
            "At most max_changes full layers beside layer 0.",
            lambda case: _exact(case) and case.options["max_changes"] + 1 < case.arrays["similarity"].shape[-1],
        ),
        Mistake("worth", sum_first, "the sum comes before the worst overlap", "The worst overlap first.", _exact),
        Mistake(
            "worth",
            full_layers_not_counted,
            "full layers add nothing to the sum",
            "A full layer counts 1 in every table.",
            _exact,
        ),
        Mistake("worth", only_the_minimum, "the sum is ignored", "Among the best take the largest sum.", _exact),
        Mistake(
            "tables",
            tables_averaged,
            "tables are averaged, so that one text's bad cell is hidden",
            "The worst cell over all tables counts.",
            lambda case: _exact(case) and case.arrays["similarity"].ndim == 3,
        ),
        Mistake(
            "tables",
            first_table_only,
            "only the first calibration text is read",
            "The worst cell over all tables counts.",
            lambda case: _exact(case) and case.arrays["similarity"].ndim == 3,
        ),
        Mistake(
            "one_pass",
            one_pass_for_both,
            "one pass that keeps the largest pair (minimum, sum) for each state: a larger minimum evicts a sum that "
            "would win after the next low cell",
            "Find the best minimum first, then the largest sum among the cells that do not fall below it.",
            _exact,
        ),
    )
)
