"""Mistakes that people make with attention for in-context regression, each one exchanged step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.icl_regression import plain
from refattn.contracts.icl_regression.plain import einsum, weigh

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = [
    "ATTENTION_BUGS",
    "DEBIASED_BUGS",
    "DOUBLE_SOFTMAX_BUGS",
    "ESTIMATOR_BUGS",
    "GD_BUGS",
    "GRADIENT_BUGS",
    "LINEAR_BUGS",
    "PRECONDITIONER_BUGS",
    "RIDGE_BUGS",
]

WIDE = ("float64", "float32")


def _prompts(case: Case) -> int:
    return len(case.arrays["z" if "z" in case.arrays else "x"])


def _length(case: Case) -> int:
    return int(case.arrays["z" if "z" in case.arrays else "x"].shape[1])


def _heads(case: Case) -> int:
    if "weights" in case.arrays:
        return len(case.arrays["weights"].w_k)
    return len(case.arrays["kq" if "kq" in case.arrays else "omega"])


def _filled(case: Case) -> bool:
    return _prompts(case) > 0


def _several_examples(case: Case) -> bool:
    return _filled(case) and _length(case) > 1


def _several_heads(case: Case) -> bool:
    return _filled(case) and _heads(case) > 1


# the layer


def _scale_of_covariates(width: int, n_head: int) -> float:
    del n_head
    return float(max(width - 1, 1) ** 0.5)


def _scale_of_split_heads(width: int, n_head: int) -> float:
    return float((width / n_head) ** 0.5)


def _keys_ask(w_k: np.ndarray, w_q: np.ndarray, z: np.ndarray, z_q: np.ndarray) -> Any:
    return einsum("hij,hik,blj,bk->bhl", w_q, w_k, z, z_q)


def _question_sees_itself(s: np.ndarray, own: np.ndarray) -> Any:
    return weigh(np.concatenate([s, own[..., None]], axis=-1))


def _softmax_over_heads(s: np.ndarray, own: np.ndarray) -> Any:
    del own
    return weigh(s.swapaxes(1, 2)).swapaxes(1, 2)


def _nearer_examples_preferred(s: np.ndarray) -> Any:
    return s - 0.125 * np.arange(s.shape[-1])[::-1]


def _responses_hidden_from_keys(z: np.ndarray) -> Any:
    return z * (np.arange(z.shape[-1]) < z.shape[-1] - 1)


def _tokens_normalised(z: np.ndarray) -> Any:
    return z / np.sqrt(np.mean(z**2, axis=-1, keepdims=True) + 1e-6)


def _heads_averaged(w_v: np.ndarray, w_o: np.ndarray, z_bar: np.ndarray) -> Any:
    return einsum("hok,hkj,bhj->bo", w_o, w_v, z_bar) / len(w_v)


def _values_transposed(w_v: np.ndarray, w_o: np.ndarray, z_bar: np.ndarray) -> Any:
    return einsum("hok,hjk,bhj->bo", w_o, w_v, z_bar)


def _bias_once_a_head(y_hat: np.ndarray, b_o: np.ndarray, n_head: int) -> Any:
    return y_hat + n_head * b_o


ATTENTION_BUGS = tuple(
    mistake.planted(plain.layer, "attention_")
    for mistake in (
        Mistake(
            "root",
            _scale_of_covariates,
            "Scores are divided by the root of the number of covariates.",
            "A head is as wide as a token, response included: divide by √(d + 1).",
            _several_examples,
        ),
        Mistake(
            "root",
            _scale_of_split_heads,
            "Scores are divided as if the heads shared the width of a token.",
            "Every head has the full width D of a token; divide by √D.",
            lambda case: _several_heads(case) and _length(case) > 1,
        ),
        Mistake(
            "score",
            _keys_ask,
            "The question is multiplied by the key matrix and the examples by the query matrix.",
            "Score z_iᵀ K_hᵀ Q_h z_q: the question goes through Q_h, the examples through K_h.",
            _several_examples,
        ),
        Mistake(
            "look",
            _question_sees_itself,
            "The question is among the tokens that it attends to.",
            "Normalise over the L examples only.",
            _filled,
        ),
        Mistake(
            "look",
            _softmax_over_heads,
            "The softmax runs over heads.",
            "Each head spreads its own unit of weight over the examples.",
            _several_examples,
        ),
        Mistake(
            "place",
            _nearer_examples_preferred,
            "Scores fall with the distance from the question, a bias of positions left in.",
            "There are no positions here: the examples are a set.",
            _several_examples,
        ),
        Mistake(
            "key_tokens",
            _responses_hidden_from_keys,
            "Keys are made from covariates only.",
            "Keys are projected from whole tokens; that the response does not matter is what training finds.",
            _several_examples,
        ),
        Mistake(
            "tokens",
            _tokens_normalised,
            "Tokens go through a norm first, as in a transformer block.",
            "The layer has no norm: with it the prediction is no longer linear in the responses.",
            _filled,
        ),
        Mistake(
            "read",
            _heads_averaged,
            "The outputs of the heads are averaged.",
            "Heads are added; two of opposite sign make the mean of the covariates cancel.",
            _several_heads,
        ),
        Mistake(
            "read",
            _values_transposed,
            "The value matrix is applied from the wrong side.",
            "A token is a column: V_h z_i.",
            _filled,
        ),
        Mistake(
            "shift",
            _bias_once_a_head,
            "The output's bias is added by every head.",
            "The bias belongs to the sum of the heads: add it once.",
            lambda case: _several_heads(case) and "biases" in case.arrays,
        ),
    )
)


# the gradient


def _average_contribution_kept(p: np.ndarray, g: np.ndarray) -> Any:
    return p * g


def _diagonal_of_the_jacobian(p: np.ndarray, g: np.ndarray) -> Any:
    return p * (1 - p) * g


def _merged_transposed(r: np.ndarray, z_q: np.ndarray) -> Any:
    return einsum("bhj,bi->hij", r, z_q)


def _question_of_another_prompt(r: np.ndarray, z_q: np.ndarray) -> Any:
    return einsum("bhi,bj->hij", r, np.roll(z_q, 1, axis=0))


def _scale_left_out(w_k: np.ndarray, w_q: np.ndarray, dA: np.ndarray) -> Any:
    return w_q @ dA.mT, w_k @ dA


def _factors_swapped(w_k: np.ndarray, w_q: np.ndarray, dA: np.ndarray) -> Any:
    root = dA.shape[-1] ** 0.5
    return w_k @ dA / root, w_q @ dA.mT / root


def _factor_transposed(w_k: np.ndarray, w_q: np.ndarray, dA: np.ndarray) -> Any:
    root = dA.shape[-1] ** 0.5
    return w_q @ dA.mT / root, w_k.mT @ dA / root


def _output_sees_tokens_not_values(w_v: np.ndarray, w_o: np.ndarray, dC: np.ndarray) -> Any:
    del w_v
    return (dC @ w_o).mT, dC.mT


def _averaged_over_prompts(delta: np.ndarray) -> Any:
    return delta / max(len(delta), 1)


GRADIENT_BUGS = tuple(
    mistake.planted(plain.pull_back, "gradient_")
    for mistake in (
        Mistake(
            "spread",
            _average_contribution_kept,
            "The derivative of the softmax is taken to be p g.",
            "A weight can only grow at the cost of the others: p (g − Σ p g).",
            _several_examples,
        ),
        Mistake(
            "spread",
            _diagonal_of_the_jacobian,
            "Only the diagonal of the softmax's Jacobian is used.",
            "Every score moves every weight: diag(p) − p pᵀ.",
            lambda case: _filled(case) and _length(case) > 2,
        ),
        Mistake(
            "pair",
            _merged_transposed,
            "The derivative of K_hᵀ Q_h is transposed.",
            "Examples index the rows of A_h, the question its columns.",
            _several_examples,
        ),
        Mistake(
            "pair",
            _question_of_another_prompt,
            "Every prompt's examples meet the question of the next prompt.",
            "Sum over prompts the outer product of a prompt's own two vectors.",
            lambda case: _several_examples(case) and _prompts(case) > 1,
        ),
        Mistake(
            "part",
            _scale_left_out,
            "Keys and queries miss the factor 1/√D.",
            "The scale is part of A_h = K_hᵀ Q_h / √D, so it stands in both derivatives.",
            _several_examples,
        ),
        Mistake(
            "part",
            _factors_swapped,
            "The derivatives of keys and queries are exchanged.",
            "The derivative of K_h holds Q_h, that of Q_h holds K_h.",
            _several_examples,
        ),
        Mistake(
            "part",
            _factor_transposed,
            "The derivative of the queries is multiplied by the transposed key matrix.",
            "dQ_h = K_h dA_h / √D, because A_h holds K_hᵀ.",
            _several_examples,
        ),
        Mistake(
            "part_values",
            _output_sees_tokens_not_values,
            "The derivative of the output matrix holds the mean token, not the mean value.",
            "O_h multiplies values V_h z: dO_h = dC_hᵀ V_hᵀ.",
            _filled,
        ),
        Mistake(
            "weight",
            _averaged_over_prompts,
            "Prompts are averaged over, though the derivative that comes in is of a mean already.",
            "Sum over prompts; the loss carries the 1/B.",
            lambda case: _prompts(case) > 1,
        ),
    )
)


# the estimators


def _asked_from_the_other_side(x: np.ndarray, x_q: np.ndarray, omega: np.ndarray) -> Any:
    return einsum("bli,hji,bj->bhl", x, omega, x_q)


def _distances_compared(x: np.ndarray, x_q: np.ndarray, omega: np.ndarray) -> Any:
    gap = x - x_q[:, None]
    return -0.5 * einsum("bli,hij,blj->bhl", gap, omega, gap)


def _angles_compared(x: np.ndarray, x_q: np.ndarray, omega: np.ndarray) -> Any:
    sizes = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(x_q, axis=-1)[:, None, None]
    return einsum("bli,hij,bj->bhl", x, omega, x_q) / np.maximum(sizes, 1e-9)


def _sums_compared(x: np.ndarray, x_q: np.ndarray, omega: np.ndarray) -> Any:
    return einsum("bli,hij,bk->bhl", x, omega, x_q)


def _scaled_once_more(x: np.ndarray, x_q: np.ndarray, omega: np.ndarray) -> Any:
    return einsum("bli,hij,bj->bhl", x, omega, x_q) / (x.shape[-1] + 1) ** 0.5


def _one_softmax_for_all_heads(s: np.ndarray) -> Any:
    B, H, L = s.shape
    return weigh(s.reshape(B, H * L)).reshape(B, H, L)


def _signs_of_heads_lost(mu: np.ndarray, smooth: np.ndarray) -> Any:
    return einsum("nh,bhn->bn", np.abs(mu), smooth)


def _diagonal_averaged(omega: np.ndarray, d: int) -> Any:
    if omega.ndim != 2:
        return plain.full(omega, d)
    return einsum("h,ij->hij", omega.mean(axis=1), np.eye(d))


ESTIMATOR_BUGS = tuple(
    mistake.planted(plain.estimator, "estimator_")
    for mistake in (
        Mistake(
            "kernel",
            _asked_from_the_other_side,
            "The kernel's matrix is transposed.",
            "Examples stand to the left of Ω_h, the question to the right.",
            lambda case: _several_examples(case) and case.arrays["omega"].ndim == 3,
        ),
        Mistake(
            "kernel",
            _distances_compared,
            "The kernel is Gaussian: it compares by distance.",
            "The kernel is exp(ω x·x_q); it is Gaussian only where all x are equally long.",
            _several_examples,
        ),
        Mistake(
            "kernel",
            _angles_compared,
            "Covariates are normalised before they are compared.",
            "Lengths matter: the score is ω x·x_q, not ω times a cosine.",
            _several_examples,
        ),
        Mistake(
            "kernel",
            _sums_compared,
            "The product of two sums stands for the sum of products.",
            "An inner product multiplies coordinate by coordinate, then adds.",
            lambda case: _several_examples(case) and case.arrays["x"].shape[-1] > 1,
        ),
        Mistake(
            "kernel",
            _scaled_once_more,
            "Scores are divided by √(d + 1) though ω holds that factor.",
            "ω belongs to KQ = KᵀQ/√D: the scale is inside.",
            _several_examples,
        ),
        Mistake(
            "weigh",
            _one_softmax_for_all_heads,
            "All heads share one unit of weight.",
            "Each head spreads its own unit of weight over the examples.",
            _several_heads,
        ),
        Mistake(
            "blend",
            _signs_of_heads_lost,
            "Heads of negative sign are added.",
            "Negative heads subtract: their difference from the positive ones is what predicts.",
            lambda case: _filled(case) and bool(np.any(case.arrays["mu"] < 0)),
        ),
        Mistake(
            "full",
            _diagonal_averaged,
            "A diagonal kernel is replaced by its mean.",
            "Each coordinate has its own ω_hj.",
            lambda case: _several_examples(case) and case.arrays["omega"].ndim == 2 and case.arrays["x"].shape[-1] > 1,
        ),
    )
)


def _examples_added(terms: np.ndarray) -> Any:
    return terms.sum(axis=1)


def _one_example_less(terms: np.ndarray) -> Any:
    return terms.sum(axis=1) / max(terms.shape[1] - 1, 1)


def _half_forgotten(terms: np.ndarray) -> Any:
    return 2 * terms.mean(axis=1)


def _step_transposed(b: np.ndarray, x_q: np.ndarray, step: Any) -> Any:
    gamma = step.T if np.ndim(step) else step * np.eye(b.shape[-1])
    return einsum("bi,ij,bj->b", x_q, gamma, b)


def _mean_removed(x: np.ndarray) -> Any:
    return x - x.mean(axis=1, keepdims=True)


def _mean_left_in(x: np.ndarray) -> Any:
    return x


def _mean_of_the_batch(x: np.ndarray) -> Any:
    return x - (x.mean(axis=(0, 1)) if x.size else 0)


def _standardised(x: np.ndarray) -> Any:
    return (x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, keepdims=True) + 1e-6)


_AVERAGES = (
    Mistake(
        "average",
        _examples_added,
        "The gradient is summed over examples.",
        "Average over the L examples: the prediction must not grow with their number.",
        _several_examples,
    ),
    Mistake(
        "average",
        _one_example_less,
        "The gradient is divided by L − 1.",
        "Divide by L, the number of examples.",
        _several_examples,
    ),
    Mistake(
        "average",
        _half_forgotten,
        "The step is twice as long.",
        "The loss is ½ of the mean square, so that its gradient has no factor 2.",
        _filled,
    ),
    Mistake(
        "move",
        _step_transposed,
        "The preconditioner is transposed.",
        "Predict x_qᵀ Γ b: the gradient stands to the right of Γ.",
        lambda case: _filled(case) and "step" in case.arrays and case.arrays["x"].shape[-1] > 1,
    ),
)

GD_BUGS = tuple(
    mistake.planted(plain.step_of(plain.keep), "gd_")
    for mistake in (
        *_AVERAGES,
        Mistake(
            "centre",
            _mean_removed,
            "The mean of the covariates is removed.",
            "Plain gradient descent uses the covariates as they are; removing the mean makes it debiased.",
            _filled,
        ),
    )
)

DEBIASED_BUGS = tuple(
    mistake.planted(plain.step_of(plain.centre), "debiased_")
    for mistake in (
        *_AVERAGES,
        Mistake(
            "centre",
            _mean_left_in,
            "The mean of the covariates stays.",
            "Subtract from every prompt's covariates their own mean.",
            _filled,
        ),
        Mistake(
            "centre",
            _mean_of_the_batch,
            "One mean is removed from all prompts.",
            "Each prompt has its own mean; prompts know nothing of one another.",
            lambda case: _prompts(case) > 1,
        ),
        Mistake(
            "centre",
            _standardised,
            "Covariates are divided by their standard deviation too.",
            "Only the mean is removed.",
            _several_examples,
        ),
    )
)


def _ridge_times_length(gram: np.ndarray, ridge: float, length: int) -> Any:
    return gram + ridge * length * np.eye(gram.shape[-1])


def _ridge_left_out(gram: np.ndarray, ridge: float, length: int) -> Any:
    del ridge, length
    return gram


def _ridge_relative(gram: np.ndarray, ridge: float, length: int) -> Any:
    del length
    size = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / gram.shape[-1]
    return gram + ridge * size * np.eye(gram.shape[-1])


def _penalised(case: Case) -> bool:
    return _filled(case) and case.options["ridge"] > 0


RIDGE_BUGS = tuple(
    mistake.planted(plain.ridge, "ridge_")
    for mistake in (
        Mistake(
            "regularise",
            _ridge_times_length,
            "The ridge grows with the number of examples.",
            "XᵀX is a sum over examples, not an average: add the ridge as it is.",
            lambda case: _penalised(case) and _length(case) > 1,
            WIDE,
        ),
        Mistake(
            "regularise",
            _ridge_left_out,
            "There is no ridge.",
            "Add ridge · I to XᵀX: the prior of the rule pulls towards 0.",
            _penalised,
            WIDE,
        ),
        Mistake(
            "regularise",
            _ridge_relative,
            "The ridge is measured in units of the mean eigenvalue.",
            "The ridge σ²d is in the units of XᵀX.",
            _penalised,
            WIDE,
        ),
        Mistake(
            "centre",
            _mean_removed,
            "Covariates are centred first, as if there were an intercept.",
            "The rule has no intercept: leave the covariates as they are.",
            _filled,
            WIDE,
        ),
    )
)


def _softmax_kept(s: np.ndarray, length: int | None) -> Any:
    del length
    return weigh(s)


def _length_of_training_forgotten(s: np.ndarray, length: int | None) -> Any:
    del length
    return s / s.shape[-1]


def _not_divided(s: np.ndarray, length: int | None) -> Any:
    del length
    return s


def _matrix_transposed(z: np.ndarray, z_q: np.ndarray, kq: np.ndarray) -> Any:
    return einsum("bli,hji,bj->bhl", z, kq, z_q)


LINEAR_BUGS = tuple(
    mistake.planted(plain.linear, "linear_")
    for mistake in (
        Mistake(
            "share",
            _softmax_kept,
            "The scores still go through a softmax.",
            "In linear attention the scores are the weights.",
            _filled,
        ),
        Mistake(
            "share",
            _length_of_training_forgotten,
            "The sum is divided by the number of examples at hand.",
            "A trained layer keeps the factor 1/L of its training: divide by ``length`` where it is given.",
            lambda case: _filled(case) and case.options.get("length") not in (None, _length(case)),
        ),
        Mistake(
            "share",
            _not_divided,
            "The sum over examples is not divided.",
            "Divide by the length, so that the step size has a meaning.",
            lambda case: _filled(case) and case.options.get("length", _length(case)) > 1,
        ),
        Mistake(
            "compare",
            _matrix_transposed,
            "The merged matrix is transposed.",
            "Examples stand to the left of A_h, the question to the right.",
            _filled,
        ),
    )
)


def _softmax_once(p: np.ndarray, seen: np.ndarray) -> Any:
    visible = np.where(seen, p, 0.0)
    return visible / visible.sum(axis=-1, keepdims=True)


def _first_softmax_masked(s: np.ndarray, seen: np.ndarray) -> Any:
    return weigh(np.where(seen, s, -1e9))


def _oneself_unseen(length: int) -> Any:
    return np.tri(length, k=-1, dtype=bool)


def _rows(case: Case) -> bool:
    return _filled(case) and _length(case) > 1


DOUBLE_SOFTMAX_BUGS = tuple(
    mistake.planted(plain.double_softmax, "causal_")
    for mistake in (
        Mistake(
            "second",
            _softmax_once,
            "Weights are normalised once, as attention should.",
            "This variant takes a softmax of weights that a softmax has made already.",
            _rows,
        ),
        Mistake(
            "first",
            _first_softmax_masked,
            "The first softmax does not see later positions.",
            "The first softmax of this variant runs over all positions; only the second is causal.",
            _rows,
        ),
        Mistake(
            "see",
            _oneself_unseen,
            "A token does not see itself, as in the copy of the official notebook.",
            "The mask holds the diagonal: position n sees 0 … n.",
            _rows,
        ),
    )
)


def _noise_left_out(cov: np.ndarray, length: int, noise_var: float) -> Any:
    del noise_var
    return np.trace(cov) / length


def _noise_counted_once(cov: np.ndarray, length: int, noise_var: float) -> Any:
    return (np.trace(cov) + noise_var) / length


def _deviation_for_variance(cov: np.ndarray, length: int, noise_var: float) -> Any:
    return (np.trace(cov) + len(cov) * noise_var**0.5) / length


def _gain_of_plain_descent(length: int, *, debiased: bool) -> Any:
    del debiased
    return 1 + 1 / length


def _gain_of_debiased_descent(length: int, *, debiased: bool) -> Any:
    del length, debiased
    return 1.0


def _noisy(case: Case) -> bool:
    return bool(case.options["noise_var"] > 0)


PRECONDITIONER_BUGS = tuple(
    mistake.planted(plain.precondition, "preconditioner_")
    for mistake in (
        Mistake("widen", _noise_left_out, "The noise is left out.", "κ = (tr Σ + dσ²)/L.", _noisy),
        Mistake(
            "widen",
            _noise_counted_once,
            "The noise enters once, not once a covariate.",
            "κ = (tr Σ + dσ²)/L: rules have variance 1/d a coordinate, which makes the noise d times as large.",
            lambda case: _noisy(case) and len(case.arrays["cov"]) > 1,
        ),
        Mistake(
            "widen",
            _deviation_for_variance,
            "The standard deviation of the noise stands for its variance.",
            "κ holds the variance σ².",
            lambda case: _noisy(case) and case.options["noise_var"] != 1,
        ),
        Mistake(
            "gain",
            _gain_of_plain_descent,
            "The factor 1 + 1/L is used for debiased descent too.",
            "With the mean removed, L − 1 degrees of freedom make that factor 1.",
            lambda case: case.options.get("debiased", True),
        ),
        Mistake(
            "gain",
            _gain_of_debiased_descent,
            "The factor 1 + 1/L is missing.",
            "Without removing the mean, Γ = [(1 + 1/L)Σ + κI]⁻¹.",
            lambda case: not case.options.get("debiased", True),
        ),
    )
)
