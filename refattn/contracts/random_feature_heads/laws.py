"""What every implementation of random-feature attention obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.layers.random_feature_heads import RandomHeads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ATTENTION_LAWS", "FEATURE_LAWS", "FIT_LAWS", "KERNEL_LAWS", "MLP_LAWS"]


def _two(probe: Probe, case: Case, name: str = "out") -> np.ndarray:
    return 2.0 * probe.slack(case)[name]


def _scalars(values: Any) -> np.ndarray:
    """Lay scalars out one a row."""
    return np.asarray(values)[..., None]


def _single_keys(case: Case) -> list[Case]:
    x = case.arrays["x"]
    return [case.having(x=x[:, i : i + 1]) for i in range(x.shape[1])]


def _a_mean_over_keys(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    parts = _single_keys(case)
    left, right = probe(case)["out"], np.mean([probe(part)["out"] for part in parts], axis=0)
    slack = probe.slack(case)["out"] + np.sum([probe.slack(part)["out"] for part in parts], axis=0)
    yield Claim(left, right, slack)


def _keys_may_be_permuted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(x=case.arrays["x"][:, ::-1])
    yield Claim(probe(case)["out"], probe(turned)["out"], _two(probe, case))


def _twice_every_key(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = case.having(x=np.repeat(case.arrays["x"], 2, axis=1))
    yield Claim(probe(case)["out"], probe(twice)["out"], _two(probe, case))


def _scores_are_homogeneous(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    double = case.having(heads=RandomHeads(2.0 * case.arrays["heads"].w))
    yield Claim(2.0 * probe(case)["out"], probe(double)["out"], 2.0 * _two(probe, case))


def _coordinates_may_be_permuted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    d = case.arrays["x0"].shape[1]
    order = np.append(np.arange(d)[::-1], d)
    w = case.arrays["heads"].w[:, order][:, :, order]
    turned = case.having(x0=case.arrays["x0"][:, order[:-1]], x=case.arrays["x"][..., order[:-1]], heads=RandomHeads(w))
    yield Claim(probe(case)["out"][..., order], probe(turned)["out"], _two(probe, case))


FEATURE_LAWS = (
    Law(
        "a_mean_over_keys",
        "The features of many keys are the mean of the features of each key alone.",
        _a_mean_over_keys,
        witness="keys_averaged_first",
    ),
    Law(
        "keys_may_be_permuted",
        "The order of the keys does not matter.",
        _keys_may_be_permuted,
        lambda case: case.arrays["x"].shape[1] > 1,
        witness="last_key_unseen",
    ),
    Law(
        "twice_every_key",
        "Giving every key twice changes nothing.",
        _twice_every_key,
        witness="root_of_keys",
    ),
    Law(
        "scores_are_homogeneous",
        "Heads twice as large give features twice as large.",
        _scores_are_homogeneous,
        witness="smooth_activation",
    ),
    Law(
        "coordinates_may_be_permuted",
        "Permuting the coordinates of tokens and heads alike permutes those of the features.",
        _coordinates_may_be_permuted,
        lambda case: case.arrays["x0"].shape[1] > 1,
        witness="one_in_front",
    ),
)


def _linear_in_the_values(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    opposite = case.having(v=-case.arrays["v"])
    yield Claim(-probe(case)["out"], probe(opposite)["out"], _two(probe, case))


def _heads_add_up(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w, v = case.arrays["heads"].w, case.arrays["v"]
    half = len(w) // 2
    parts = [case.having(heads=RandomHeads(w[s]), v=v[s]) for s in (slice(half), slice(half, None))]
    slack = sum((probe.slack(part)["out"] for part in parts), start=probe.slack(case)["out"])
    yield Claim(probe(case)["out"], sum(probe(part)["out"] for part in parts), slack)  # type: ignore[arg-type]


ATTENTION_LAWS = (
    Law(
        "outputs_are_a_mean_over_keys",
        "The output for many keys is the mean of the outputs for each key alone.",
        _a_mean_over_keys,
        lambda case: case.arrays["x"].shape[1] > 1,
        witness="attention_keys_averaged_first",
    ),
    Law(
        "linear_in_the_values",
        "Values of the other sign give the output of the other sign.",
        _linear_in_the_values,
        witness="values_rectified",
    ),
    Law(
        "heads_add_up",
        "The outputs of two groups of heads add up to the output of all.",
        _heads_add_up,
        lambda case: len(case.arrays["v"]) > 1,
        witness="heads_averaged",
    ),
)


def _neurons_are_homogeneous(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    double = case.having(w=2.0 * case.arrays["w"])
    yield Claim(2.0 * probe(case)["out"], probe(double)["out"], 2.0 * _two(probe, case))


def _every_key_has_its_weights(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, w = case.arrays["x"], case.arrays["w"]
    n_keys, d = x.shape[1:]
    blocks = np.split(w, [(i + 1) * d for i in range(n_keys + 1)], axis=1)
    turned = np.concatenate([blocks[0], *blocks[-2:0:-1], blocks[-1]], axis=1)
    yield Claim(probe(case)["out"], probe(case.having(x=x[:, ::-1], w=turned))["out"], _two(probe, case))


MLP_LAWS = (
    Law(
        "neurons_are_homogeneous",
        "Weights twice as large give features twice as large.",
        _neurons_are_homogeneous,
        witness="mlp_smooth_activation",
    ),
    Law(
        "every_key_has_its_weights",
        "Permuting the keys together with their weights changes nothing.",
        _every_key_has_its_weights,
        lambda case: case.arrays["x"].shape[1] > 1,
        witness="coordinates_before_tokens",
    ),
)


def _exchanged(case: Case) -> Case:
    a = case.arrays
    return case.having(x0=a["y0"], x=a["y"], y0=a["x0"], y=a["x"])


def _kernel_is_symmetric(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    other = _exchanged(case)
    left, right = probe(case)["out"], probe(other)["out"].T
    slack = probe.slack(case)["out"] + np.sqrt(np.sum(probe.slack(other)["out"] ** 2))
    yield Claim(left, right, slack)


def _no_mean_is_a_zero_mean(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    width = case.arrays["x0"].shape[1] + 1
    zero = case.without("bias").having(bias=np.zeros((width, width)))
    slack = probe.slack(case)["out"] + probe.slack(zero)["out"]
    yield Claim(probe(case)["out"], probe(zero)["out"], slack)


def _spread_is_a_scale(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    double = case.having(std=2.0 * case.options.get("std", 0.5))
    yield Claim(4.0 * probe(case)["out"], probe(double)["out"], 4.0 * _two(probe, case))


def _unbiased(case: Case) -> bool:
    return case.options.get("bias", "none") == "none" and "bias" not in case.arrays


KERNEL_LAWS = (
    Law(
        "kernel_is_symmetric",
        "Exchanging the two sets of inputs transposes the kernel.",
        _kernel_is_symmetric,
        lambda case: min(len(case.arrays["x0"]), len(case.arrays["y0"])) > 0,
        witness="one_spread_for_all",
    ),
    Law(
        "kernel_is_additive",
        "The kernel of many keys is the mean of the kernels of each key alone.",
        _a_mean_over_keys,
        lambda case: case.arrays["x"].shape[1] > 1,
        witness="mean_key",
    ),
    Law(
        "no_mean_is_a_zero_mean",
        "A mean of zero gives the formula without a mean.",
        _no_mean_is_a_zero_mean,
        _unbiased,
        witness="angle_unturned",
    ),
    Law(
        "spread_is_a_scale",
        "Heads without a mean that spread twice as far give a kernel four times as large.",
        _spread_is_a_scale,
        _unbiased,
        witness="variance_for_deviation",
    ),
)


def _scale_is_free(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    small, large = probe(case), probe(case.having(gram=4.0 * case.arrays["gram"]))
    yield Claim(small["alpha"], 4.0 * large["alpha"], _two(probe, case, "alpha"), "alpha")
    yield Claim(_scalars(small["gcv"]), _scalars(large["gcv"]), _two(probe, case, "gcv"), "gcv")


def _level_goes_to_the_intercept(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    moved = case.having(y=case.arrays["y"] + 2.0)
    slack = {name: probe.slack(case)[name] + probe.slack(moved)[name] for name in ("alpha", "intercept")}
    one, two = probe(case), probe(moved)
    yield Claim(one["alpha"], two["alpha"], slack["alpha"], "alpha")
    yield Claim(_scalars(one["intercept"] + 2.0), _scalars(two["intercept"]), slack["intercept"], "intercept")


def _noise_has_its_variance(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n = len(case.arrays["y"])
    unrelated = case.having(gram=np.eye(n))
    yield Claim(
        _scalars(probe(unrelated)["gcv"]), _scalars(np.var(case.arrays["y"])), _two(probe, unrelated, "gcv"), "gcv"
    )


FIT_LAWS = (
    Law(
        "scale_is_free",
        "A Gram matrix four times as large gives weights a quarter as large and the same cross-validation.",
        _scale_is_free,
        witness="ridge_absolute",
    ),
    Law(
        "level_goes_to_the_intercept",
        "Raising all targets by 2 raises the intercept by 2 and nothing else.",
        _level_goes_to_the_intercept,
        witness="targets_not_centred",
    ),
    Law(
        "noise_has_its_variance",
        "Where all inputs are orthogonal nothing can be learned, and cross-validation says so: the variance of the "
        "targets.",
        _noise_has_its_variance,
        witness="leverage_not_squared",
    ),
)
