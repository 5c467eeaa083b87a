"""What holds between results of the attention variants, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Case, Claim, Law, agree
from refattn.layers.deconstructed import FIXED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ATTENTION_LAWS", "GATE_LAWS", "INDICATOR_LAWS", "STACK_LAWS", "TAYLOR_LAWS"]


def _long(case: Case) -> bool:
    return bool(case.arrays["hidden"].size and case.arrays["hidden"].shape[-2] > 1)


def _no_look_ahead(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    changed = {}
    for name in ("hidden", "static", "reference"):
        if name in case.arrays:
            x = case.arrays[name].copy()
            x[..., case.arrays["hidden"].shape[-2] - 1 :, :] += rng.choice([-0.5, 0.5])
            changed[name] = x
    later = case.having(**changed)
    claim = agree(probe, case, later)
    yield Claim(claim.left[..., :-1, :], claim.right[..., :-1, :], claim.slack[..., :-1])


def _silent_queries_average(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    hidden, weights = case.arrays["hidden"], case.arrays["weights"]
    unit = np.eye(hidden.shape[-1])
    silent = case.having(weights=weights._replace(W_Q=0 * weights.W_Q, W_V=unit, W_O=unit))
    mean = np.cumsum(hidden, axis=-2) / np.arange(1, hidden.shape[-2] + 1)[:, None]
    yield Claim(probe(silent)["out"], mean, probe.slack(silent)["out"])


def _mixes_jointly(case: Case) -> bool:
    joint = case.options.get("form", "joint") == "joint" and not case.options.get("eps", 0.0)
    return joint and case.options["variant"] != "mlp" and _long(case)


def _linear_in_the_hidden_state(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    double = case.having(hidden=-2 * case.arrays["hidden"])
    slack = 2 * probe.slack(case)["out"] + probe.slack(double)["out"]
    yield Claim(probe(double)["out"], -2 * probe(case)["out"], slack)


def _has_its_map_from_elsewhere(case: Case) -> bool:
    return case.options["variant"] in (*FIXED, "static_emb") and case.arrays["hidden"].size > 0


def _own_reference_is_standard(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    hidden = case.arrays["hidden"]
    more = rng.choice([-0.5, 0.5, 1.0], size=(*hidden.shape[:-2], 2, hidden.shape[-1]))
    own = case.having(reference=np.concatenate([hidden, more], axis=-2))
    yield agree(probe, own, case.without("reference").having(variant="standard"))


ATTENTION_LAWS = (
    Law(
        "no_look_ahead",
        "A token does not move the outputs before it.",
        _no_look_ahead,
        _long,
        witness="next_token_seen",
    ),
    Law(
        "silent_queries_average",
        "Without queries every token reads the mean of what it can see.",
        _silent_queries_average,
        _mixes_jointly,
        witness="normalised_over_queries",
    ),
    Law(
        "linear_in_the_hidden_state",
        "Where the map comes from elsewhere, −2 times the hidden state gives −2 times the output.",
        _linear_in_the_hidden_state,
        _has_its_map_from_elsewhere,
        witness="values_of_the_source",
    ),
    Law(
        "own_reference_is_standard",
        "A reference that begins with the input gives standard attention.",
        _own_reference_is_standard,
        lambda case: case.options["variant"] in FIXED and _long(case),
        witness="end_of_reference",
    ),
)


def _equal_values_come_back(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    v = case.arrays["v"]
    equal = case.without("initial").having(v=np.broadcast_to(v[..., :1, :], v.shape).copy())
    yield Claim(probe(equal)["out"], equal.arrays["v"], probe.slack(equal)["out"])


def _shares(case: Case) -> bool:
    return (
        case.options.get("form", "joint") == "joint" and not case.options.get("eps", 0.0) and case.arrays["v"].size > 0
    )


TAYLOR_LAWS = (
    Law(
        "equal_values_come_back",
        "If all values are equal, every query reads that value.",
        _equal_values_come_back,
        lambda case: _shares(case) and case.arrays["v"].shape[-2] > 1,
        witness="divided_by_count",
    ),
)
GATE_LAWS = (
    Law(
        "equal_values_come_back",
        "If all values are equal, every query reads that value.",
        _equal_values_come_back,
        _shares,
        witness="weight_not_rescaled",
    ),
)


def _skipping_is_leaving_out(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    skip, plan, params = case.options["skip"], case.options["plan"], case.arrays["params"]
    kept = [i for i in range(len(plan)) if i + 1 not in skip]
    shorter = params._replace(blocks=tuple(params.blocks[i] for i in kept))
    yield agree(probe, case, case.without("skip").having(params=shorter, plan=[plan[i] for i in kept]), "hidden")


def _own_text_is_standard(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    tokens, plan = case.arrays["tokens"], case.options["plan"]
    own = case.having(tokens=tokens[:1], reference_tokens=tokens[0])
    standard = ["standard" if kind == "text_fixed" else kind for kind in plan]
    yield agree(probe, own, own.without("reference_tokens").having(plan=standard), "hidden")


STACK_LAWS = (
    Law(
        "skipping_is_leaving_out",
        "A skipped block might as well not be there.",
        _skipping_is_leaving_out,
        lambda case: (
            bool(case.options.get("skip")) and len(case.options["plan"]) > 1 and case.arrays["tokens"].size > 0
        ),
        witness="network_still_runs",
    ),
    Law(
        "own_text_is_standard",
        "A text that is its own reference gets standard attention in every layer.",
        _own_text_is_standard,
        lambda case: "text_fixed" in case.options["plan"] and case.arrays["tokens"].size > 0,
        witness="reference_stands_still",
    ),
)


def _heads_seen_twice(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(maps=np.concatenate([case.arrays["maps"]] * 2, axis=-3))
    for name in probe(case):
        claim = agree(probe, case, twice, name)
        yield claim._replace(what=name)


INDICATOR_LAWS = (
    Law(
        "heads_seen_twice",
        "Counting every head twice changes no indicator.",
        _heads_seen_twice,
        lambda case: case.arrays["maps"].size > 0,
        witness="sample_deviation",
    ),
)
