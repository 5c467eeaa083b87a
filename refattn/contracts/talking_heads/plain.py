"""The scores of channels once more, matrix by matrix, in steps that can be exchanged: for wrong versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["composing", "flagging", "inhibiting", "removing", "resolving", "scaling", "spanning"]


def group_of(h: int, heads: int, groups: int) -> int:
    """Return which of the shared keys and values a head has."""
    return h // (heads // groups)


def moved(W_V: np.ndarray, W_O: np.ndarray) -> np.ndarray:
    """Return what the earlier head moves."""
    return np.asarray(W_V @ W_O)


def read(W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, W_O: np.ndarray, mode: str) -> np.ndarray:
    """Return what the later head does with what it reads."""
    return np.asarray({"Q": W_Q @ W_K.T, "K": W_K @ W_Q.T, "V": W_V @ W_O}[mode])


def through(OV: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Return what goes through both."""
    return np.asarray(OV @ M)


def size(matrix: np.ndarray) -> Any:
    """Return how large a matrix is."""
    return np.sqrt(np.sum(matrix * matrix))


def sizes(OV: np.ndarray, M: np.ndarray, _W_V: np.ndarray, _W_O: np.ndarray) -> Any:
    """Return what the size of the product is divided by."""
    return size(OV) * size(M)


def quotient(product: Any, whole: Any) -> Any:
    """Return the score."""
    return product / whole if whole > 0 else 0.0


def speaks(l: int, m: int) -> bool:
    """Whether a head of layer l can speak to one of layer m."""
    return l < m


class ComposeSteps(NamedTuple):
    """The steps of a composition score that can be exchanged."""

    group_of: Callable[..., int] = group_of
    moved: Callable[..., np.ndarray] = moved
    read: Callable[..., np.ndarray] = read
    through: Callable[..., np.ndarray] = through
    size: Callable[..., Any] = size
    sizes: Callable[..., Any] = sizes
    quotient: Callable[..., Any] = quotient
    speaks: Callable[..., bool] = speaks


def composing(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the composition scores with these steps exchanged."""
    steps = ComposeSteps(**changes)

    def scores(W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, W_O: np.ndarray, *, mode: str = "Q") -> np.ndarray:
        L, H = W_Q.shape[:2]
        out = np.zeros((L, H, L, H))
        for l, h, m, g in np.ndindex(*out.shape):
            first, second = (steps.group_of(head, H, W_K.shape[1]) for head in (h, g))
            if steps.speaks(l, m):
                OV = steps.moved(W_V[l, first], W_O[l, h])
                M = steps.read(W_Q[m, g], W_K[m, second], W_V[m, second], W_O[m, g], mode)
                whole = steps.sizes(OV, M, W_V[l, first], W_O[l, h])
                out[l, h, m, g] = steps.quotient(steps.size(steps.through(OV, M)), whole)
        return out

    return scores


def directions(OV: np.ndarray, _W_O: np.ndarray, e: int) -> np.ndarray:
    """Return along what the components write, (e, d), the largest first."""
    return np.asarray(np.linalg.svd(OV)[2][:e])


def strengths(OV: np.ndarray, e: int) -> np.ndarray:
    """Return how large the components are."""
    return np.asarray(np.linalg.svd(OV, compute_uv=False)[:e])


def there(s: np.ndarray) -> np.ndarray:
    """Return which of the components there are."""
    return np.asarray(s > 1e-12 * s[:1])


def heard(direction: np.ndarray, M: np.ndarray, _s: Any, _strengths: np.ndarray) -> np.ndarray:
    """Return what the later head makes of a component."""
    return np.asarray(direction @ M)


def part(vector: np.ndarray, M: np.ndarray) -> Any:
    """Return the score of a component."""
    whole = size(M)
    return size(vector) / whole if whole > 0 else 0.0


class ResolveSteps(NamedTuple):
    """The steps of the scores of components that can be exchanged."""

    moved: Callable[..., np.ndarray] = moved
    directions: Callable[..., np.ndarray] = directions
    there: Callable[..., np.ndarray] = there
    read: Callable[..., np.ndarray] = read
    heard: Callable[..., np.ndarray] = heard
    part: Callable[..., Any] = part
    speaks: Callable[..., bool] = speaks


def resolving(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the scores of components with these steps exchanged."""
    steps = ResolveSteps(**changes)

    def scores(W_Q: np.ndarray, W_K: np.ndarray, W_V: np.ndarray, W_O: np.ndarray, *, mode: str = "Q") -> np.ndarray:
        (L, H, _, e), G = W_Q.shape, W_K.shape[1]
        out = np.zeros((L, H, e, L, H))
        for l, h in np.ndindex(L, H):
            OV = steps.moved(W_V[l, group_of(h, H, G)], W_O[l, h])
            rows, s = steps.directions(OV, W_O[l, h], e), strengths(OV, e)
            for i, m, g in np.argwhere(np.ones((e, L, H))):
                if steps.speaks(l, m) and steps.there(s)[i]:
                    second = group_of(int(g), H, G)
                    M = steps.read(W_Q[m, g], W_K[m, second], W_V[m, second], W_O[m, g], mode)
                    out[l, h, i, m, g] = steps.part(steps.heard(rows[i], M, s[i], s), M)
        return out

    return scores


def rest(direction: np.ndarray, before: list[np.ndarray]) -> np.ndarray:
    """Return what of a direction those before it do not have."""
    for b in [*before, *before]:  # twice, because once leaves rounding errors of the other directions in it
        direction = np.asarray(direction - (direction @ b) * b)
    return direction


def unit(direction: np.ndarray) -> np.ndarray:
    """Return a direction of length one."""
    return np.asarray(direction / size(direction))


def in_order(rows: np.ndarray) -> np.ndarray:
    """Return the directions in the order in which they are taken."""
    return rows


class SpanSteps(NamedTuple):
    """The steps of finding a basis that can be exchanged."""

    in_order: Callable[..., np.ndarray] = in_order
    rest: Callable[..., np.ndarray] = rest
    unit: Callable[..., np.ndarray] = unit


def spanning(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the finding of a basis with these steps exchanged."""
    steps = SpanSteps(**changes)

    def basis(directions: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = []
        for direction in steps.in_order(directions):
            found.append(steps.unit(steps.rest(direction, found)))
        return np.stack(found, axis=1)

    return basis


def projector(rows: np.ndarray) -> np.ndarray:
    """Return the projector on the span of the directions."""
    basis = spanning()(rows)
    return np.asarray(basis @ basis.T)


def without(W_O: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Return the weights without what the projector keeps."""
    return np.asarray(W_O - W_O @ P)


class RemoveSteps(NamedTuple):
    """The steps of removing components that can be exchanged."""

    projector: Callable[..., np.ndarray] = projector
    without: Callable[..., np.ndarray] = without


def removing(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the removal of components with these steps exchanged."""
    steps = RemoveSteps(**changes)

    def remove(W_O: np.ndarray, directions: np.ndarray) -> np.ndarray:
        return steps.without(W_O, steps.projector(directions)) if len(directions) else W_O

    return remove


def gain(factor: Any) -> Any:
    """Return by how much of a component the weights change."""
    return factor - 1.0


def factor_of(factors: np.ndarray, i: int) -> Any:
    """Return the factor of a component."""
    return factors[i]


def component(W_O: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return what the weights write along a direction."""
    return np.outer(W_O @ v, v)


class ScaleSteps(NamedTuple):
    """The steps of scaling components that can be exchanged."""

    gain: Callable[..., Any] = gain
    factor_of: Callable[..., Any] = factor_of
    component: Callable[..., np.ndarray] = component


def scaling(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the scaling of components with these steps exchanged."""
    steps = ScaleSteps(**changes)

    def scale(W_O: np.ndarray, directions: np.ndarray, factors: np.ndarray) -> np.ndarray:
        out = W_O.copy()
        for i, v in enumerate(directions):
            out += steps.gain(steps.factor_of(factors, i)) * steps.component(W_O, v)
        return out

    return scale


def middle(scores: np.ndarray) -> Any:
    """Return what scores are compared with."""
    return np.median(scores)


def spread(scores: np.ndarray, centre: Any) -> Any:
    """Return how far scores usually are from it."""
    return 1.4826 * np.median(np.abs(scores - centre))


def above(scores: np.ndarray, centre: Any) -> np.ndarray:
    """Return how far each score is from it."""
    return np.asarray(scores - centre)


def reach(z: float, usual: Any) -> Any:
    """Return what a score must exceed."""
    return max(z * usual, 1e-9)


def beyond(distance: np.ndarray, limit: Any) -> np.ndarray:
    """Whether a score is outlying."""
    return np.asarray(distance > limit)


class FlagSteps(NamedTuple):
    """The steps of the rule for outliers that can be exchanged."""

    middle: Callable[..., Any] = middle
    spread: Callable[..., Any] = spread
    above: Callable[..., np.ndarray] = above
    reach: Callable[..., Any] = reach
    beyond: Callable[..., np.ndarray] = beyond


def flagging(**changes: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Return the rule for outliers with these steps exchanged."""
    steps = FlagSteps(**changes)

    def outliers(scores: np.ndarray, *, z: float = 4.0) -> np.ndarray:
        if not scores.size:
            return np.zeros(scores.shape, bool)
        centre = steps.middle(scores)
        return steps.beyond(steps.above(scores, centre), steps.reach(z, steps.spread(scores, centre)))

    return outliers


def weight(pattern: np.ndarray, query: int, key: int) -> Any:
    """Return how much a query attends to a key."""
    return pattern[query, key]


def contrast(io: Any, s: Any) -> Any:
    """Return how much more the indirect object gets than the subject."""
    return io - s


def over_prompts(values: np.ndarray) -> Any:
    """Return what all prompts together show."""
    return np.mean(values)


class InhibitSteps(NamedTuple):
    """The steps of the inhibition score that can be exchanged."""

    weight: Callable[..., Any] = weight
    contrast: Callable[..., Any] = contrast
    over_prompts: Callable[..., Any] = over_prompts


def inhibiting(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the inhibition score with these steps exchanged."""
    steps = InhibitSteps(**changes)

    def inhibition(pattern: np.ndarray, end: np.ndarray, io: np.ndarray, s: np.ndarray) -> Any:
        values = [
            steps.contrast(*(steps.weight(rows, query, key) for key in keys))
            for rows, query, keys in zip(pattern, end, zip(io, s, strict=True), strict=True)
        ]
        return np.float64(steps.over_prompts(np.array(values)))

    return inhibition
