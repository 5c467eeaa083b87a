"""What every implementation of attention for in-context regression obeys, stated between its own results."""

from __future__ import annotations

from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import rounded
from refattn.conformance.contract import Case, Claim, Law
from refattn.layers.icl_regression import ICLAttentionWeights, one_step_matrices, pattern_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "ATTENTION_LAWS",
    "DEBIASED_LAWS",
    "DOUBLE_SOFTMAX_LAWS",
    "ESTIMATOR_LAWS",
    "GD_LAWS",
    "GRADIENT_LAWS",
    "LINEAR_LAWS",
    "PRECONDITIONER_LAWS",
    "RIDGE_LAWS",
]

SIMPLE = np.array([-1.0, -0.5, -0.25, 0.25, 0.5, 1.0])  # numbers that every dtype holds


def _filled(case: Case) -> bool:
    return len(case.arrays["z" if "z" in case.arrays else "x"]) > 0


def _bare(case: Case) -> bool:
    return _filled(case) and "biases" not in case.arrays


def _main(probe: Probe, case: Case) -> np.ndarray:
    return next(iter(probe(case).values()))


def _slack(probe: Probe, *cases: Case) -> Any:
    return sum(next(iter(probe.slack(case).values())) for case in cases)


def _equal(probe: Probe, left: Case, right: Case, factor: float = 1.0) -> Claim:
    """Claim that the first result of two cases is the same, up to a factor."""
    slack = factor * _slack(probe, left) + _slack(probe, right)
    return Claim(factor * _main(probe, left), _main(probe, right), slack)


def _reordered(case: Case, rng: np.random.Generator, *names: str) -> tuple[Case, np.ndarray]:
    order = np.roll(rng.permutation(case.arrays[names[0]].shape[1]), 1)
    return case.having(**{name: case.arrays[name][:, order] for name in names}), order


def _order_is_forgotten(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    reverse = case.having(z=case.arrays["z"][:, ::-1].copy())
    yield _equal(probe, case, reverse)
    slack = probe.slack(case)["attn"] + probe.slack(reverse)["attn"]
    yield Claim(probe(case)["attn"], probe(reverse)["attn"][..., ::-1], slack, "weights move with their examples")


def _responses_enter_linearly(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    z, weights = case.arrays["z"], case.arrays["weights"]
    covariate = np.arange(z.shape[-1]) < z.shape[-1] - 1
    blind = case.having(weights=weights._replace(w_k=weights.w_k * covariate))
    some = rng.random(z.shape[:2])[..., None] < 0.5
    parts = [blind.having(z=np.where(covariate | kept, z, 0.0)) for kept in (some, ~some, some & ~some)]
    left = _main(probe, parts[0]) + _main(probe, parts[1])
    right = _main(probe, blind) + _main(probe, parts[2])
    yield Claim(left, right, _slack(probe, blind, *parts))


def _weights_sum_to_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    attn = probe(case)["attn"]
    sums = attn.sum(axis=-1, keepdims=True)
    yield Claim(sums, np.ones_like(sums), attn.shape[-1] ** 0.5 * probe.slack(case)["attn"])
    yield Claim(np.minimum(attn, 0.0), np.zeros_like(attn), 0.0, "none is negative")


def _pattern_is_the_estimator(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    z, z_q = case.arrays["z"], case.arrays["z_q"]
    H, d = len(case.arrays["weights"].w_k), z.shape[-1] - 1
    omega, mu = rng.choice(SIMPLE, H), rng.choice(SIMPLE, H)
    layer = case.having(weights=pattern_weights(omega, mu, dim=d))
    arrays = {"x": z[..., :d].copy(), "y": z[..., d].copy(), "x_q": z_q[:, :d].copy(), "omega": omega, "mu": mu}
    short = Case("softmax_estimator", arrays, {}, case.dtype, case.label)
    slack = np.linalg.norm(probe.slack(layer)["y_hat"]) + _slack(probe, short)
    yield Claim(_main(probe, layer)[:, 0], _main(probe, short), slack)


def _heads_add(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    split = [np.concatenate([a, a]) for a in w._replace(w_o=w.w_o / 2)]
    yield _equal(probe, case, case.having(weights=ICLAttentionWeights(*split)))


def _square_width(case: Case) -> bool:
    return _bare(case) and case.arrays["z"].shape[-1] in (4, 9, 16)


ATTENTION_LAWS = (
    Law(
        "order_is_forgotten",
        "The order of the examples changes nothing but the order of their weights.",
        _order_is_forgotten,
        _filled,
        witness="attention_nearer_examples_preferred",
    ),
    Law(
        "responses_enter_linearly",
        "Where keys do not see the responses, the prediction is affine in the responses.",
        _responses_enter_linearly,
        _filled,
        witness="attention_tokens_normalised",
    ),
    Law(
        "weights_sum_to_one",
        "Each head spreads one unit of weight over the examples, and no weight is negative.",
        _weights_sum_to_one,
        _filled,
        witness="attention_question_sees_itself",
    ),
    Law(
        "pattern_is_the_estimator",
        "A layer whose matrices follow the pattern of training is the estimator with two numbers a head.",
        _pattern_is_the_estimator,
        _square_width,  # √D has no rounding there
        needs=("softmax_estimator",),
        witness="attention_scale_of_covariates",
    ),
    Law(
        "heads_add",
        "A head may be split into two that attend alike and contribute half each.",
        _heads_add,
        _bare,
        witness="attention_heads_averaged",
    ),
)


def _prompts_add(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    names, B = ("z_q", "z", "dy_hat"), len(case.arrays["z"])
    singles = [case.having(**{name: case.arrays[name][b : b + 1] for name in names}) for b in range(B)]
    for field in ICLAttentionWeights._fields:
        total = sum(probe(single)[field] for single in singles)
        slack = sum(probe.slack(single)[field] for single in singles) + probe.slack(case)[field]
        yield Claim(probe(case)[field], np.asarray(total), slack, field)


def _equal_examples_teach_no_keys(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    z = case.arrays["z"]
    alike = case.having(z=np.repeat(z[:, :1], z.shape[1], axis=1))
    for field in ("w_k", "w_q"):
        found = probe(alike)[field]
        yield Claim(found, np.zeros_like(found), probe.slack(alike)[field], field)


def _factors_turn_together(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    K, Q, V, O = case.arrays["weights"]
    grads, slack = probe(case), probe.slack(case)
    dK, dQ, dV, dO = (grads[field] for field in ICLAttentionWeights._fields)

    def size(a: np.ndarray) -> Any:
        return np.linalg.norm(a, axis=(-2, -1))[:, None]

    def whole(field: str) -> Any:
        return np.linalg.norm(slack[field], axis=-1, keepdims=True)

    by_keys = slack["w_k"] * size(K) + np.linalg.norm(Q, axis=-1) * whole("w_q")
    yield Claim(dK @ K.mT, Q @ dQ.mT, by_keys, "keys and queries")
    by_values = slack["w_v"] * size(V) + np.linalg.norm(O, axis=1) * whole("w_o")
    yield Claim(dV @ V.mT, O.mT @ dO, by_values, "values and output")


def _symmetrised(case: Case) -> Case:
    """Add all signed permutations of the covariates, and the flip of the responses, to the prompts."""
    z_q, z, delta = (case.arrays[name] for name in ("z_q", "z", "dy_hat"))
    d = z.shape[-1] - 1
    found = []
    for order in permutations(range(d)):
        for signs in product([1.0, -1.0], repeat=d + 1):
            turn = [*order, d]
            flip = np.array(signs)
            found.append((z_q[:, turn] * flip * (np.arange(d + 1) < d), z[..., turn] * flip, delta * signs[d]))
    stacked = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return case.having(**dict(zip(("z_q", "z", "dy_hat"), stacked, strict=True)))


def _pattern_is_never_left(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    d, H = case.arrays["z"].shape[-1] - 1, len(case.arrays["weights"].w_k)
    weights = pattern_weights(rng.choice(SIMPLE, H), rng.choice(SIMPLE, H), dim=d)
    even = _symmetrised(case.having(weights=ICLAttentionWeights(*rounded(tuple(weights), case.dtype))))
    grads, slack = probe(even), probe.slack(even)
    block = grads["w_q"][:, :d, :d]
    mean = np.trace(block, axis1=-2, axis2=-1)[:, None, None] / d * np.eye(d)
    rough = 2.0 * np.max(slack["w_q"], axis=-1, keepdims=True)
    yield Claim(block, mean, np.broadcast_to(rough, block.shape[:2]), "the block of covariates stays a multiple of I")
    for field, part in (("w_q", np.s_[:, d:, :d]), ("w_v", np.s_[:, :, :d]), ("w_o", np.s_[:, :, :d])):
        found = grads[field][part]
        yield Claim(found, np.zeros_like(found), slack[field][part[:2]], f"{field} outside the pattern")


def _small(case: Case) -> bool:
    return _filled(case) and case.arrays["z"].shape[-1] in (2, 3) and case.arrays["dy_hat"].shape[-1] == 1


GRADIENT_LAWS = (
    Law(
        "prompts_add",
        "The derivative of a batch is the sum of those of its prompts.",
        _prompts_add,
        _filled,
        witness="gradient_averaged_over_prompts",
    ),
    Law(
        "equal_examples_teach_no_keys",
        "Where all examples of a prompt are equal, keys and queries have nothing to learn.",
        _equal_examples_teach_no_keys,
        _filled,
        witness="gradient_average_contribution_kept",
    ),
    Law(
        "factors_turn_together",
        "Turning keys and queries together changes nothing, so dK Kᵀ = Q dQᵀ; and Oᵀ dO = dV Vᵀ likewise.",
        _factors_turn_together,
        _filled,
        witness="gradient_factors_swapped",
    ),
    Law(
        "pattern_is_never_left",
        "On prompts that look the same from all sides, the gradient at the pattern points along the pattern.",
        _pattern_is_never_left,
        _small,
        witness="gradient_question_of_another_prompt",
    ),
)


def _order_of_examples_is_forgotten(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    moved, _ = _reordered(case, rng, "x", "y")
    yield _equal(probe, case, moved)


def _constants_pass(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mu = case.arrays["mu"]
    constant = case.having(y=np.ones_like(case.arrays["y"]))
    found = _main(probe, constant)
    yield Claim(found, np.broadcast_to(mu.sum(axis=-1), found.shape), _slack(probe, constant))


def _heads_may_be_split(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    omega, mu = case.arrays["omega"], case.arrays["mu"]
    split = case.having(omega=np.concatenate([omega, omega]), mu=np.concatenate([mu, mu], axis=-1) / 2)
    yield _equal(probe, case, split)


def _sides_are_alike(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x, x_q = case.arrays["x"], case.arrays["x_q"]
    turn, flip = np.roll(rng.permutation(x.shape[-1]), 1), rng.choice([-1.0, 1.0], x.shape[-1])
    yield _equal(probe, case, case.having(x=x[..., turn] * flip, x_q=x_q[:, turn] * flip))


def _negative_question_is_negative_kernel(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _equal(probe, case.having(x_q=-case.arrays["x_q"]), case.having(omega=-case.arrays["omega"]))


ESTIMATOR_LAWS = (
    Law(
        "constants_pass",
        "If every response is 1, the prediction is the sum of μ, whatever the kernels.",
        _constants_pass,
        _filled,
        witness="estimator_one_softmax_for_all_heads",
    ),
    Law(
        "heads_may_be_split",
        "A head may be split into two of the same kernel that share its μ.",
        _heads_may_be_split,
        _filled,
        witness="estimator_one_softmax_for_all_heads",
    ),
    Law(
        "sides_are_alike",
        "With one number a kernel, turning and mirroring all covariates changes nothing.",
        _sides_are_alike,
        lambda case: _filled(case) and case.arrays["omega"].ndim == 1,
        witness="estimator_sums_compared",
    ),
    Law(
        "negative_question_is_negative_kernel",
        "Negating the question is negating every kernel.",
        _negative_question_is_negative_kernel,
        _filled,
        witness="estimator_distances_compared",
    ),
)


def _twice(case: Case) -> Case:
    x, y = case.arrays["x"], case.arrays["y"]
    return case.having(x=np.concatenate([x, x], axis=1), y=np.concatenate([y, y], axis=1))


def _repetition_changes_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _equal(probe, case, _twice(case))


def _linear_attention_descends(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, y, x_q, step = case.arrays["x"], case.arrays["y"], case.arrays["x_q"], case.options["step"]
    kq, ov = one_step_matrices(x.shape[-1], step)
    tokens = {"z_q": np.pad(x_q, [(0, 0), (0, 1)]), "z": np.concatenate([x, y[..., None]], axis=-1)}
    layer = Case("linear_attention", tokens | {"kq": kq, "ov": ov}, {}, case.dtype, case.label)
    slack = np.linalg.norm(_slack(probe, layer)) + _slack(probe, case)
    yield Claim(_main(probe, layer)[:, 0], _main(probe, case), slack)


def _scalar_step(case: Case) -> bool:
    return _filled(case) and "step" in case.options


GD_LAWS = (
    Law(
        "repetition_changes_nothing",
        "Giving every example twice changes nothing.",
        _repetition_changes_nothing,
        _filled,
        witness="gd_examples_added",
    ),
    Law(
        "linear_attention_descends",
        "Linear attention that compares covariates and reads the response is the same step.",
        _linear_attention_descends,
        _scalar_step,
        needs=("linear_attention",),
        witness="gd_half_forgotten",
    ),
)


def _constants_are_forgotten(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    halves = {name: np.clip(np.round(2 * case.arrays[name]) / 2, -8, 8) for name in ("x", "y")}
    plain = case.having(**halves)  # exact in every dtype, and so is what is added
    yield _equal(probe, plain, plain.having(x=halves["x"] + 4.0))
    yield _equal(probe, plain, plain.having(y=halves["y"] + 4.0))


def _prompts_are_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    alone = case.having(**{name: case.arrays[name][:1] for name in ("x", "y", "x_q")})
    yield Claim(_main(probe, case)[:1], _main(probe, alone), _slack(probe, case, alone))


DEBIASED_LAWS = (
    Law(
        "constants_are_forgotten",
        "Adding a constant to all covariates, or to all responses, changes nothing.",
        _constants_are_forgotten,
        _filled,
        witness="debiased_mean_left_in",
    ),
    Law(
        "debiased_repetition_changes_nothing",
        "Giving every example twice changes nothing.",
        _repetition_changes_nothing,
        _filled,
        witness="debiased_one_example_less",
    ),
    Law(
        "prompts_are_alone",
        "A prompt's prediction does not depend on the prompts beside it.",
        _prompts_are_alone,
        _filled,
        witness="debiased_mean_of_the_batch",
    ),
)


def _repetition_halves_the_ridge(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _equal(probe, _twice(case), case.having(ridge=case.options["ridge"] / 2))


def _units_are_forgotten(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    x, x_q, ridge = case.arrays["x"], case.arrays["x_q"], case.options["ridge"]
    yield _equal(probe, case, case.having(x=2 * x, x_q=2 * x_q, ridge=4 * ridge))


RIDGE_LAWS = (
    Law(
        "repetition_halves_the_ridge",
        "Giving every example twice has the effect of half the ridge.",
        _repetition_halves_the_ridge,
        _filled,
        witness="ridge_ridge_times_length",
    ),
    Law(
        "units_are_forgotten",
        "Covariates twice as large ask for a ridge four times as large, and predict the same.",
        _units_are_forgotten,
        _filled,
        witness="ridge_ridge_relative",
    ),
)


def _examples_count_quadratically(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield _equal(probe, case, case.having(z=2 * case.arrays["z"]), factor=4.0)


LINEAR_LAWS = (
    Law(
        "examples_count_quadratically",
        "Examples twice as large predict four times as much: once through the scores, once through the values.",
        _examples_count_quadratically,
        _filled,
        witness="linear_softmax_kept",
    ),
)


def _first_token_keeps_its_value(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    alone = case.having(x=case.arrays["x"][:, :1])
    left, right = _main(probe, case)[:, :1], _main(probe, alone)
    yield Claim(left, right, _slack(probe, case)[:, :1] + _slack(probe, alone))


DOUBLE_SOFTMAX_LAWS = (
    Law(
        "first_token_keeps_its_value",
        "The first token sees only itself, so it comes out as if it stood alone.",
        _first_token_keeps_its_value,
        lambda case: _filled(case) and case.arrays["x"].shape[1] > 0,
        witness="causal_oneself_unseen",
    ),
)


def _noise_has_units(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    louder = case.having(cov=4 * case.arrays["cov"], noise_var=4 * case.options["noise_var"])
    yield _equal(probe, louder, case, factor=4.0)


PRECONDITIONER_LAWS = (
    Law(
        "noise_has_units",
        "Covariance and noise variance four times as large ask for steps a quarter as long.",
        _noise_has_units,
        witness="preconditioner_deviation_for_variance",
    ),
)
