"""Mistakes that people make when they shrink and grow models, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.multilevel.plain import (
    coalescing,
    decoalescing,
    interpolating,
    layering,
    turning,
    weighing,
    widening,
)

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = [
    "COALESCE_BUGS",
    "DECOALESCE_BUGS",
    "DEPTH_BUGS",
    "INTERPOLATE_BUGS",
    "REVERSE_BUGS",
    "WEIGHT_BUGS",
    "WIDTH_BUGS",
]


def _neighbouring_heads(big: int, small: int) -> Any:
    return [[i for i in (2 * s, 2 * s + 1) if i < big] for s in range(small)]


def _neurons_dealt_out(head: int, heads: int, block: int) -> Any:
    return [head + heads * i for i in range(block)]


def _members_summed(group: list[int]) -> Any:
    return [1.0] * len(group)


def _first_member_kept(group: list[int]) -> Any:
    return [1.0] + [0.0] * (len(group) - 1)


def _blocks_of_the_head_size(width: int, heads: int, e: int) -> Any:
    return e if width % (heads * e) == 0 else width // heads


def _halves_of_the_stack(big: int, small: int) -> Any:
    return [[i, i + small] for i in range(small)] if big > small else [[i] for i in range(big)]


def _layers_summed(group: list[int]) -> Any:
    return [1.0] * len(group)


def _later_layer_kept(group: list[int]) -> Any:
    return [float(layer == max(group)) for layer in group]


def _only_transposed(matrix: np.ndarray) -> Any:
    return matrix.T.copy()


def _columns_sum_to_one(matrix: np.ndarray) -> Any:
    total = matrix.T.sum(axis=0, keepdims=True)
    return matrix.T / np.where(total == 0, 1.0, total)


def _least_squares(matrix: np.ndarray) -> Any:
    return np.linalg.pinv(matrix)


def _unused_shared_by_all(matrix: np.ndarray) -> Any:
    total = matrix.T.sum(axis=1, keepdims=True)
    return np.where(total == 0, 1.0 / len(matrix), matrix.T / np.where(total == 0, 1.0, total))


def _inputs_like_outputs(w: np.ndarray, M: np.ndarray, back: np.ndarray) -> Any:
    del back
    return M @ w


def _inputs_by_the_transpose(w: np.ndarray, M: np.ndarray, back: np.ndarray) -> Any:
    return np.where(M > 0, 1.0, 0.0) @ w if len(M) > len(back) else M @ w


def _inputs_by_first_member(w: np.ndarray, M: np.ndarray, back: np.ndarray) -> Any:
    picked = np.zeros_like(M)
    picked[np.arange(len(M)), np.argmax(M > 0, axis=1)] = 1.0
    return picked @ w if len(M) < len(back) else back.T @ w


def _largest_member(w: np.ndarray, M: np.ndarray) -> Any:
    outputs = [w[..., np.flatnonzero(row)] for row in M]
    return np.stack(
        [o[..., :1, :].max(-1)[..., 0] if o.ndim > 1 and o.shape[-1] == 1 else o.max(-1) for o in outputs], -1
    )


def _vectors_summed(w: np.ndarray, M: np.ndarray) -> Any:
    return w @ np.where(M > 0, 1.0, 0.0).T


def _vectors_shared_out(w: np.ndarray, M: np.ndarray) -> Any:
    return w @ (M / np.count_nonzero(M, axis=0)).T


def _factor_forgotten(w: np.ndarray, factor: float, *, embeds: bool) -> Any:
    del factor, embeds
    return w


def _everything_scaled(w: np.ndarray, factor: float, *, embeds: bool) -> Any:
    del embeds
    return factor * w


def _factor_upside_down(w: np.ndarray, factor: float, *, embeds: bool) -> Any:
    return w / factor if embeds else w


def _twice_whichever_way(width_groups: Any, depth_groups: Any, *, tied: bool, grows: bool) -> Any:
    del depth_groups, grows
    return 2.0 if tied and all(len(group) == 2 for group in width_groups) else 1.0


def _also_for_depth(width_groups: Any, depth_groups: Any, *, tied: bool, grows: bool) -> Any:
    merges = any(len(group) > 1 for group in [*width_groups, *depth_groups])
    return (0.5 if grows else 2.0) if tied and merges else 1.0


def _also_with_its_own_head(width_groups: Any, depth_groups: Any, *, tied: bool, grows: bool) -> Any:
    del depth_groups, tied
    return (0.5 if grows else 2.0) if all(len(group) == 2 for group in width_groups) else 1.0


def _copies_lie_together(stack: np.ndarray, R: np.ndarray) -> Any:
    order = np.argsort(np.argmax(R > 0, axis=1), kind="stable")
    return np.stack([np.tensordot(R[t], stack, 1) for t in order])


def _layers_from_the_top(stack: np.ndarray, R: np.ndarray) -> Any:
    return np.stack([np.tensordot(row, stack[::-1], 1) for row in R])


def _alpha_on_the_big(big: np.ndarray, small: np.ndarray, alpha: float, name: str) -> Any:
    del name
    return alpha * big + (1.0 - alpha) * small


def _vectors_taken_from_below(big: np.ndarray, small: np.ndarray, alpha: float, name: str) -> Any:
    return small if name.endswith("vector") else (1.0 - alpha) * big + alpha * small


def _added_not_mixed(big: np.ndarray, small: np.ndarray, alpha: float, name: str) -> Any:
    del name
    return big + alpha * small


def _along_a_circle(big: np.ndarray, small: np.ndarray, alpha: float, name: str) -> Any:
    del name
    return np.cos(np.pi / 2 * alpha) * big + np.sin(np.pi / 2 * alpha) * small


def _larger_of_both(big: np.ndarray, small: np.ndarray, alpha: float, name: str) -> Any:
    del name
    mixed = (1.0 - alpha) * big + alpha * small
    return np.where(np.sign(big) == np.sign(small), mixed, big)


def _default(case: Case) -> bool:
    return "scheme" not in case.options


def _scheme(case: Case) -> Any:
    return case.options.get("scheme")


def _merges(case: Case) -> bool:
    scheme = _scheme(case)
    if scheme is None:
        return any(case.options[f"big_{what}"] > case.options[f"small_{what}"] for what in ("width",) if _wide(case))
    return any(len(group) > 1 for group in scheme)


def _wide(case: Case) -> bool:
    return "big_width" in case.options


def _merges_layers(case: Case) -> bool:
    scheme = _scheme(case)
    shrinks = case.options["big_depth"] > case.options["small_depth"]
    return bool(shrinks) if scheme is None else any(len(group) > 1 for group in scheme)


def _neighbours_differ(case: Case) -> bool:
    options = case.options
    return (
        _default(case) and options["small_width"] > options["head_size"] < options["big_width"] - options["small_width"]
    )


def _many_heads(case: Case) -> bool:
    e = case.options["head_size"]
    heads = case.options["big_width"] // e
    return bool(heads > 1 and _merges(case) and (e > 1 or _hidden(case) > heads))


def _hidden(case: Case) -> int:
    return int(case.options.get("mlp_width", 4 * case.options["big_width"]))


def _hidden_blocks_differ(case: Case) -> bool:
    width, e = case.options["big_width"], case.options["head_size"]
    return bool(width > e and _hidden(case) % width == 0 and _hidden(case) > width and _moves(case))


def _moves(case: Case) -> bool:
    return bool(case.options["big_width"] != case.options["small_width"])


def _unused(case: Case) -> bool:
    matrix = case.arrays["matrix"]
    return bool(matrix.size and np.any(matrix.sum(0) == 0))


def _patternless(case: Case) -> bool:
    """Whether some neuron is in two groups, so that least squares share it out in another way."""
    matrix = case.arrays["matrix"]
    return bool(matrix.size and np.any(np.count_nonzero(matrix, axis=0) > 1) and min(matrix.shape) > 1)


def _shares(case: Case) -> bool:
    matrix = case.arrays["matrix"]
    return bool(matrix.size and np.any(np.abs(matrix.sum(0) - 1) > 0.05))


def _uneven_columns(case: Case) -> bool:
    matrix = case.arrays["matrix"]
    return bool(matrix.size and np.any(matrix.sum(0) == 0)) or (_shares(case) and matrix.shape[0] > 1)


_READERS = ("unembedding", "matrix", "layer_matrix", "mlp_in", "mlp_out")


def _grows(case: Case) -> bool:
    rows, columns = case.arrays["maps"].residual.shape
    return bool(rows > columns)


def _shrinks(case: Case) -> bool:
    rows, columns = case.arrays["maps"].residual.shape
    return bool(rows < columns)


def _reads(case: Case) -> bool:
    return case.options["role"] in _READERS and (_grows(case) or _shrinks(case)) and case.arrays["weight"].size > 0


def _vector(case: Case) -> bool:
    return bool(case.options["role"].endswith("vector") and case.arrays["weight"].size)


def _factor(case: Case) -> bool:
    given = bool(case.options.get("embedding_factor", 1.0) != 1.0)
    return given and case.options["role"] == "embedding"


def _scales_others(case: Case) -> bool:
    given = bool(case.options.get("embedding_factor", 1.0) != 1.0)
    return given and case.options["role"] != "embedding" and case.arrays["weight"].size > 0


_READ = "Inputs go by the way back of the map: summed where outputs are averaged, shared out where they are copied."

WIDTH_BUGS = tuple(
    mistake.planted(widening)
    for mistake in (
        Mistake(
            "head_groups",
            _neighbouring_heads,
            "Neighbouring heads merge by default.",
            "The paper's [I, I] merges head i with head i + h.",
            _neighbours_differ,
        ),
        Mistake(
            "neurons",
            _neurons_dealt_out,
            "A head's neurons are every H-th one.",
            "A head is a run of neurons: block i of the identity blocks.",
            _many_heads,
        ),
        Mistake("member_shares", _members_summed, "Merged heads are summed.", "Average: 1/k each.", _merges),
        Mistake("member_shares", _first_member_kept, "Only one head survives.", "Average: 1/k each.", _merges),
        Mistake(
            "hidden_block",
            _blocks_of_the_head_size,
            "Hidden neurons move in blocks as wide as a head.",
            "The pattern of the heads holds for the MLP with blocks of M/H neurons.",
            _hidden_blocks_differ,
        ),
    )
)
DEPTH_BUGS = tuple(
    mistake.planted(layering, "layers_")
    for mistake in (
        Mistake(
            "layer_groups",
            _halves_of_the_stack,
            "Layer i merges with layer i + l by default.",
            "Neighbours merge by default; the other way is a scheme.",
            lambda case: _default(case) and case.options["small_depth"] > 1 and _merges_layers(case),
        ),
        Mistake("layer_shares", _layers_summed, "Merged layers are summed.", "Average: 1/k each.", _merges_layers),
        Mistake("layer_shares", _later_layer_kept, "The later layer survives.", "Average: 1/k each.", _merges_layers),
    )
)
REVERSE_BUGS = tuple(
    mistake.planted(turning, "reverse_")
    for mistake in (
        Mistake("turned", _only_transposed, "Rows do not sum to one.", "Divide each row by its sum.", _shares),
        Mistake(
            "turned",
            _columns_sum_to_one,
            "Columns are normalised.",
            "Divide each row of the transpose by its sum.",
            _uneven_columns,
        ),
        Mistake(
            "turned",
            _least_squares,
            "The pseudo-inverse is taken.",
            "It agrees only where each neuron is in one group; the map is the transpose, rows normalised.",
            _patternless,
        ),
        Mistake(
            "turned",
            _unused_shared_by_all,
            "A neuron of no group becomes the mean of all.",
            "Rows of zeros stay zero.",
            _unused,
        ),
    )
)
WEIGHT_BUGS = tuple(
    mistake.planted(weighing)
    for mistake in (
        Mistake("inputs", _inputs_like_outputs, "Inputs are averaged or copied like outputs.", _READ, _reads),
        Mistake(
            "inputs",
            _inputs_by_the_transpose,
            "Inputs are averaged where a model shrinks.",
            _READ,
            lambda case: _reads(case) and _shrinks(case),
        ),
        Mistake(
            "inputs",
            _inputs_by_first_member,
            "The input of one member is kept, the others are dropped.",
            _READ,
            lambda case: _reads(case) and _shrinks(case),
        ),
        Mistake(
            "outputs",
            _largest_member,
            "The largest member of a group is kept.",
            "The output of a merged neuron is the mean of its group.",
            lambda case: _shrinks(case) and case.options["role"] in ("embedding", "matrix", "layer_matrix", "mlp_in"),
        ),
        Mistake(
            "vectors",
            _vectors_summed,
            "Gains and biases of merged neurons are summed.",
            "Gains and biases are mapped like outputs: averaged, or copied.",
            lambda case: _vector(case) and _shrinks(case),
        ),
        Mistake(
            "vectors",
            _vectors_shared_out,
            "Gains and biases are shared out among the copies.",
            "Gains and biases are mapped like outputs: averaged, or copied.",
            lambda case: _vector(case) and _grows(case),
        ),
        Mistake(
            "scaled",
            _factor_forgotten,
            "The embedding is not scaled.",
            "Embeddings are multiplied by the factor after they are mapped.",
            _factor,
        ),
        Mistake(
            "scaled",
            _everything_scaled,
            "The factor multiplies every weight.",
            "The factor is for embeddings alone.",
            _scales_others,
        ),
    )
)


def _tied(case: Case) -> bool:
    return bool(case.arrays["parameters"].unembedding is None and "embedding_factor" not in case.options)


def _sizes(case: Case, what: str) -> list[int] | None:
    scheme = case.options.get(f"{what}_scheme")
    return None if scheme is None else [len(group) for group in scheme]


def _width_merges(case: Case) -> bool:
    sizes = _sizes(case, "width")
    return "n_heads" in case.options if sizes is None else max(sizes) > 1


def _depth_merges(case: Case) -> bool:
    sizes = _sizes(case, "depth")
    return "n_layers" in case.options if sizes is None else max(sizes) > 1


def _layer_default(case: Case) -> bool:
    return "depth_scheme" not in case.options and "n_layers" in case.options


def _pairs_of_heads(case: Case) -> bool:
    sizes = _sizes(case, "width")
    return "n_heads" in case.options if sizes is None else set(sizes) == {2}


def _fed_layers(case: Case) -> bool:
    return bool(case.arrays["parameters"].mlp_in.size > 0)


def _deep(case: Case) -> bool:
    return bool(len(case.arrays["parameters"].mlp_in) > 1)


_FACTOR = "Twice when a tied model gets narrower by pairs, half when it gets wider, and else nothing."
_LEVEL = (
    Mistake("inputs", _inputs_like_outputs, "Inputs are averaged or copied like outputs.", _READ, _width_merges),
    Mistake(
        "usual_factor",
        _also_for_depth,
        "Embeddings are scaled if only layers merge.",
        _FACTOR,
        lambda case: _tied(case) and _depth_merges(case) and not _width_merges(case),
    ),
    Mistake(
        "usual_factor",
        _also_with_its_own_head,
        "Embeddings are scaled although the head has weights of its own.",
        _FACTOR,
        lambda case: (
            case.arrays["parameters"].unembedding is not None
            and "embedding_factor" not in case.options
            and _pairs_of_heads(case)
        ),
    ),
    Mistake(
        "layer_groups",
        _halves_of_the_stack,
        "Layer i merges with layer i + l by default.",
        "Neighbours merge by default; the other way is a scheme.",
        _layer_default,
    ),
)
COALESCE_BUGS = tuple(
    mistake.planted(coalescing, "coalesce_")
    for mistake in (
        *_LEVEL,
        Mistake("member_shares", _first_member_kept, "Only one head survives.", "Average: 1/k each.", _width_merges),
        Mistake(
            "layer_shares",
            _layers_summed,
            "Merged layers are summed.",
            "Average: 1/k each.",
            lambda case: _depth_merges(case) and _fed_layers(case),
        ),
        Mistake(
            "outputs",
            _largest_member,
            "The largest member of a group is kept.",
            "The output of a merged neuron is the mean of its group.",
            _width_merges,
        ),
        Mistake(
            "mixed_layers",
            _layers_from_the_top,
            "Layers are counted from the top.",
            "Layer 0 is the one that reads the embedding.",
            lambda case: _deep(case) and case.label.split("/")[0] in ("default", "untied", "uneven", "pairs"),
        ),
    )
)
DECOALESCE_BUGS = tuple(
    mistake.planted(decoalescing, "decoalesce_")
    for mistake in (
        *_LEVEL,
        Mistake(
            "usual_factor",
            _twice_whichever_way,
            "Embeddings are doubled on the way up too.",
            _FACTOR,
            lambda case: _tied(case) and _pairs_of_heads(case),
        ),
        Mistake(
            "turned",
            _only_transposed,
            "Copies are divided by the size of their group.",
            "Rows of T sum to one: each member is a whole copy.",
            _width_merges,
        ),
        Mistake(
            "mixed_layers",
            _copies_lie_together,
            "Copies of a layer follow one another, whatever the scheme.",
            "A copy stands where its member stood.",
            lambda case: case.label.split("/")[0] in ("pairs", "depth_only"),
        ),
    )
)


def _between(case: Case) -> bool:
    return bool(0 < case.options["alpha"] < 1)


_MIX = "(1 − α) times the big model and α times the de-coalesced one, for every parameter."

INTERPOLATE_BUGS = tuple(
    mistake.planted(interpolating, "mix_")
    for mistake in (
        Mistake(
            "blended",
            _alpha_on_the_big,
            "α is the share of the big model.",
            _MIX,
            lambda case: case.options["alpha"] != 0.5,
        ),
        Mistake(
            "blended",
            _vectors_taken_from_below,
            "Gains and biases are taken over whole.",
            _MIX,
            lambda case: case.options["alpha"] != 1,
        ),
        Mistake(
            "blended",
            _added_not_mixed,
            "The big model keeps its full share.",
            _MIX,
            lambda case: case.options["alpha"] != 0,
        ),
        Mistake("blended", _along_a_circle, "Shares lie on a circle and sum to more than one.", _MIX, _between),
        Mistake(
            "blended",
            _larger_of_both,
            "Where the signs differ, the big model wins.",
            _MIX,
            lambda case: case.options["alpha"] != 0,
        ),
    )
)
