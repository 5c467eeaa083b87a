"""What maps and mapped models obey, stated between results, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.conformance.precision import unit_roundoff
from refattn.efficiency.multilevel_parameters import ParametersByRole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refattn.conformance.contract import Outputs, Probe

__all__ = [
    "COALESCE_LAWS",
    "DECOALESCE_LAWS",
    "DEPTH_LAWS",
    "INTERPOLATE_LAWS",
    "REVERSE_LAWS",
    "WEIGHT_LAWS",
    "WIDTH_LAWS",
]


def _one_each(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found, slack = probe(case), probe.slack(case)
    for name, matrix in found.items():
        sums = matrix.sum(axis=1, keepdims=True)
        used = np.any(matrix != 0, axis=1, keepdims=True) * 1.0
        yield Claim(sums, used, matrix.shape[1] ** 0.5 * slack[name], name)


def _no_order_in_a_group(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(scheme=[list(group)[::-1] for group in case.options["scheme"]])
    left, right, slack = probe(case), probe(turned), probe.slack(case)
    yield from (Claim(left[name], right[name], 2 * slack[name], name) for name in left)


def _order_of_groups(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    scheme = case.options["scheme"]
    order = np.roll(np.arange(len(scheme)), 1 + int(rng.integers(len(scheme) - 1)))
    moved = probe(case.having(scheme=[list(scheme[i]) for i in order]))
    slack = probe.slack(case)
    for name, matrix in probe(case).items():
        blocks = matrix.reshape(len(scheme), -1, matrix.shape[1])[order]
        yield Claim(blocks.reshape(matrix.shape), moved[name], 2 * np.max(slack[name], initial=0.0), name)


def _schemed(case: Case) -> bool:
    return "scheme" in case.options


def _many_groups(case: Case) -> bool:
    return _schemed(case) and len(case.options["scheme"]) > 1


WIDTH_LAWS = (
    Law(
        "shares_sum_to_one",
        "Each row of a map sums to one: a merged neuron is a mean.",
        _one_each,
        witness="members_summed",
    ),
    Law(
        "no_order_in_a_group",
        "The order in which a group names its members does not matter.",
        _no_order_in_a_group,
        _schemed,
        witness="first_member_kept",
    ),
    Law(
        "groups_in_another_order",
        "Groups in another order give the same heads in that order.",
        _order_of_groups,
        _many_groups,
        witness="neurons_dealt_out",
    ),
)
DEPTH_LAWS = (
    Law(
        "layer_shares_sum_to_one",
        "Each row of a depth map sums to one: a merged layer is a mean.",
        _one_each,
        witness="layers_layers_summed",
    ),
)


def _of_groups(case: Case) -> bool:
    """Whether each neuron is in exactly one group, and counts as much as its fellows."""
    matrix = case.arrays["matrix"]
    once = np.count_nonzero(matrix, axis=0) == 1
    return bool(matrix.size and once.all() and np.allclose(matrix.sum(axis=1), 1.0))


def _there_and_back(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    F, T = case.arrays["matrix"], probe(case)["out"]
    slack = np.sqrt(np.sum(np.square(probe.slack(case)["out"]))) + 8 * unit_roundoff(case.dtype)
    yield Claim(F @ T, np.eye(len(F)), slack, "F T = I")
    yield Claim(T @ F @ T @ F, T @ F, 4 * slack * len(T), "T F is a projector")


REVERSE_LAWS = (
    Law(
        "reversed_shares_sum_to_one",
        "Each row of a reversed map sums to one, or holds nothing.",
        _one_each,
        witness="reverse_columns_sum_to_one",
    ),
    Law(
        "there_and_back",
        "Where each neuron is in one group, growing and shrinking again changes nothing, and shrinking and growing is "
        "a projector.",
        _there_and_back,
        _of_groups,
        witness="reverse_only_transposed",
    ),
)


def _linear(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weight"]
    other = np.sign(rng.standard_normal(w.shape))
    cases = [case, case.having(weight=other), case.having(weight=w + other)]
    first, second, both = (probe(one)["out"] for one in cases)
    slack = sum((probe.slack(one)["out"] for one in cases), np.zeros(both.shape[:-1]))
    rounding = unit_roundoff(case.dtype)
    yield Claim(first + second, both, slack + rounding * np.linalg.norm(both, axis=-1) + rounding, "a sum")


def _copies_compute_copies(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    w, maps = case.arrays["weight"], case.arrays["maps"]
    reads, writes = {"mlp_in": ("residual", "mlp"), "mlp_out": ("mlp", "residual")}.get(
        case.options["role"], ("residual", "residual")
    )
    reader, writer = getattr(maps, reads), getattr(maps, writes)
    if case.options["role"] == "unembedding":
        writer = np.eye(w.shape[-1])
    x = np.sign(rng.standard_normal((3, w.shape[-2])))
    out, slack = probe(case)["out"], probe.slack(case)["out"]
    rounding = 4 * unit_roundoff(case.dtype) * np.linalg.norm(w, axis=(-2, -1))
    left, right = (x @ reader.T) @ out, (x @ w) @ writer.T
    yield Claim(left, right, (np.sum(slack, axis=-1) + rounding * len(reader) ** 0.5)[..., None], "of ±1")


_MATRICES = ("unembedding", "matrix", "layer_matrix", "mlp_in", "mlp_out")


def _copying(case: Case) -> bool:
    rows, columns = case.arrays["maps"].residual.shape
    return bool(rows > columns) and case.options["role"] in _MATRICES and case.arrays["weight"].size > 0


WEIGHT_LAWS = (
    Law("linear", "Weights that are added first and mapped then give the sum.", _linear, witness="largest_member"),
    Law(
        "copies_compute_copies",
        "Fed with copies of its inputs, a weight that has grown gives copies of its outputs.",
        _copies_compute_copies,
        _copying,
        witness="inputs_like_outputs",
    ),
)


def _each(left: Outputs, right: Outputs, slack: Callable[[str], Any]) -> Iterator[Claim]:
    for name, value in left.items():
        yield Claim(value, right[name], slack(name), name)


def _combined(a: float, x: ParametersByRole, b: float, y: ParametersByRole) -> ParametersByRole:
    return ParametersByRole(*(None if p is None else a * p + b * q for p, q in zip(x, y, strict=True)))


def _level_is_linear(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["parameters"]
    y = ParametersByRole(*(None if p is None else np.sign(rng.standard_normal(p.shape)) for p in x))
    cases = [case, case.having(parameters=y), case.having(parameters=_combined(-1.0, x, 0.0, x))]
    first, ones, negative = (probe(one) for one in cases)
    slack = probe.slack(case)
    yield from _each({name: -value for name, value in first.items()}, negative, lambda name: 2 * slack[name])
    both = case.having(parameters=_combined(1.0, x, 1.0, y))
    total, more = probe(both), [probe.slack(one) for one in (case, cases[1], both)]
    rounding = unit_roundoff(case.dtype)

    def allowed(name: str) -> Any:
        size = 1 + np.linalg.norm(total[name], axis=-1)
        return sum((s[name] for s in more), 0.0) + 4 * rounding * size

    yield from _each({name: first[name] + ones[name] for name in first}, total, allowed)


def _one_after_the_other(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    wide, deep = ("n_heads", "width_scheme"), ("n_layers", "depth_scheme")
    first = case.without(*deep)
    half = ParametersByRole(**dict.fromkeys(ParametersByRole._fields) | probe(first))
    then = case.without(*wide).having(parameters=half)
    then = then.without("embedding_factor") if "embedding_factor" in case.options else then
    left, right, slack = probe(case), probe(then), [probe.slack(case), probe.slack(first), probe.slack(then)]
    rounding = unit_roundoff(case.dtype)

    def allowed(name: str) -> Any:
        return (
            slack[0][name]
            + slack[2][name]
            + np.max(slack[1][name], initial=0.0)
            + 4 * rounding * (1 + np.linalg.norm(left[name], axis=-1))
        )

    yield from _each(left, right, allowed)


def _no_order_of_members(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    names = [name for name in ("width_scheme", "depth_scheme") if name in case.options]
    turned = case.having(**{name: [list(group)[::-1] for group in case.options[name]] for name in names})
    slack = probe.slack(case)
    yield from _each(probe(case), probe(turned), lambda name: 2 * slack[name])


COALESCE_LAWS = (
    Law(
        "coalescing_is_linear",
        "Models that are added first and coalesced then give the sum, and a negative model its negative.",
        _level_is_linear,
        witness="coalesce_largest_member",
    ),
    Law(
        "width_and_depth_commute",
        "Heads may be merged before the layers, or with them.",
        _one_after_the_other,
        witness="coalesce_also_for_depth",
    ),
    Law(
        "no_order_of_members",
        "The order in which groups name their members does not matter.",
        _no_order_of_members,
        lambda case: "width_scheme" in case.options,
        witness="coalesce_first_member_kept",
    ),
)


def _coalesced_again(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    small = case.arrays["parameters"]
    grown = probe(case)
    options = dict(case.options)
    for name, here in (("n_heads", small.embedding.shape[-1] // options["head_size"]), ("n_layers", len(small.mlp_in))):
        if name in options:
            options[name] = here
    if "embedding_factor" in options:
        options["embedding_factor"] = 1 / options["embedding_factor"]
    parameters = ParametersByRole(**dict.fromkeys(ParametersByRole._fields) | grown)
    back = Case("coalesce_parameters", {"parameters": parameters}, options, case.dtype, case.label)
    found, slack, before = probe(back), probe.slack(back), probe.slack(case)
    rounding = unit_roundoff(case.dtype)
    for name, value in found.items():
        size = 1 + np.linalg.norm(value, axis=-1)
        allowed = slack[name] + np.sum(before[name]) + 4 * rounding * size
        yield Claim(value, getattr(small, name), allowed, name)


def _own_head_same_logits(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    small, grown, slack = case.arrays["parameters"], probe(case), probe.slack(case)
    left, right = grown["embedding"] @ grown["unembedding"], small.embedding @ small.unembedding
    rounding = unit_roundoff(case.dtype)
    size = np.linalg.norm(grown["embedding"], axis=-1) + slack["embedding"]
    spread = np.sqrt(np.sum(np.square(np.linalg.norm(grown["unembedding"], axis=-1) + slack["unembedding"])))
    allowed = size * np.sqrt(np.sum(np.square(slack["unembedding"]))) + spread * slack["embedding"]
    yield Claim(left, right, allowed + 8 * rounding * size * spread)


DECOALESCE_LAWS = (
    Law(
        "coalesced_again",
        "A model that was grown and is shrunk again is what it was.",
        _coalesced_again,
        needs=("coalesce_parameters",),
        witness="decoalesce_twice_whichever_way",
    ),
    Law(
        "own_head_same_logits",
        "With a head of its own, an embedding that goes straight to the head gives the same logits at every width.",
        _own_head_same_logits,
        lambda case: case.arrays["parameters"].unembedding is not None and "embedding_factor" not in case.options,
        witness="decoalesce_also_with_its_own_head",
    ),
)


def _ends(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    for alpha, name in ((0.0, "big"), (1.0, "decoalesced")):
        for field, value in probe(case.having(alpha=alpha)).items():
            yield Claim(value, getattr(case.arrays[name], field), 0.0, f"α = {alpha:g}: {field}")


def _a_model_with_itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    same = case.having(decoalesced=case.arrays["big"])
    slack = probe.slack(same)
    for field, value in probe(same).items():
        yield Claim(value, getattr(case.arrays["big"], field), slack[field], field)


def _both_sides_together(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    swapped = case.having(big=case.arrays["decoalesced"], decoalesced=case.arrays["big"])
    left, right, slack, more = probe(case), probe(swapped), probe.slack(case), probe.slack(swapped)
    for field, value in left.items():
        whole = getattr(case.arrays["big"], field) + getattr(case.arrays["decoalesced"], field)
        yield Claim(value + right[field], whole, slack[field] + more[field], field)


INTERPOLATE_LAWS = (
    Law(
        "ends_are_exact",
        "α = 0 keeps the one model and α = 1 the other, bit by bit.",
        _ends,
        witness="mix_alpha_on_the_big",
    ),
    Law(
        "a_model_with_itself",
        "A model mixed with itself is itself.",
        _a_model_with_itself,
        witness="mix_along_a_circle",
    ),
    Law(
        "mirrored",
        "A mixture and the one with the models exchanged sum to both models.",
        _both_sides_together,
        witness="mix_added_not_mixed",
    ),
)
