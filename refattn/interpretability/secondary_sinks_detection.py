"""Finding attention sinks in hidden states, by the cosine to the primary one, and naming them by how long they last.

N layers, T tokens, d channels, K sinks; equation labels (ss-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, as_integer, require, require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LABELS",
    "SinkDetection",
    "SinkLives",
    "SinkMembership",
    "cosine_similarity",
    "detect_sinks",
    "label_sinks",
    "primary_cosines",
    "sink_levels",
    "sink_lives",
    "sink_membership",
]

LABELS = ("noise", "secondary", "bos_sink")
"""What a sink is called, by how many layers it lasts; `SinkLives` counts in this order."""

SHORTEST_NORM = 1e-8  # a shorter vector counts as one of this length: cosines of zero vectors are 0


class SinkMembership(NamedTuple):
    """Who is a sink where, as arrays whose shapes do not depend on what was found.

    Attributes
    ----------
    primary : ndarray of int, shape ()
        The position b of the primary sink.
    window : ndarray of bool, shape (N,)
        The layers on which sinks are looked for.
    members : ndarray of bool, shape (N, T)
        Whether each position is a sink on each layer, b included.
    """

    primary: np.ndarray
    window: np.ndarray
    members: np.ndarray


class SinkLives(NamedTuple):
    """Per position, when it became a sink, for how long, and what that makes it.

    Attributes
    ----------
    first : ndarray of int, shape (T,)
        The first layer on which the position is a sink, −1 if there is none.
    lifetime : ndarray of int, shape (T,)
        On how many layers it is one; they need not be contiguous.
    label : ndarray of int, shape (T,)
        Index into `LABELS`; 0 where there is no sink.
    """

    first: np.ndarray
    lifetime: np.ndarray
    label: np.ndarray


class SinkDetection(NamedTuple):
    """The sinks of one sequence, in the order of their positions.

    Attributes
    ----------
    primary : int
        The position b of the primary sink.
    start, end : int
        The layers start … end − 1 on which sinks were looked for.
    positions : ndarray of int, shape (K,)
        Where the sinks stand.
    layers : tuple of K tuples of int
        The layers on which each is one.
    labels : tuple of K str
        What each is, one of `LABELS`.
    """

    primary: int
    start: int
    end: int
    positions: np.ndarray
    layers: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]


def detect_sinks(
    hidden: Any,
    *,
    bos_positions: Sequence[int] = (0,),
    threshold: float = 0.9,
    clip: bool = True,
    bos_margin: int = 15,
    min_lifetime: int = 5,
) -> SinkDetection:
    """Find the primary sink, the layers on which it is one, and every later token that points where it points.

    1. The primary sink b is the candidate with the largest mean norm.
    2. Its layers begin after the steepest rise of its norm and end with the steepest fall after that.
    3. On these layers a later position is a sink if its hidden state is parallel, or antiparallel, to that of b.
    4. The number of layers on which it is one says what it is called.

    Parameters
    ----------
    hidden : array_like, shape (N, T, d)
        Block outputs, the last after the final norm; see `refattn.interpretability.secondary_sinks.hidden_states`.
    bos_positions : sequence of int
        Candidates P for the primary sink. The paper's code takes (0, 1), and (0, 1, 2) under a chat template.
    threshold : float
        How large the absolute cosine must be, in (0, 1).
    clip : bool
        Look only on the layers of step 2; all layers otherwise.
    bos_margin, min_lifetime : int
        See `label_sinks`.

    Returns
    -------
    SinkDetection

    Raises
    ------
    ValueError
        If ``hidden`` is not three-dimensional or not finite, has fewer than 3 layers with ``clip`` (or none at all), a
        candidate is no position, or an option is out of range.

    Notes
    -----
    The released code returns the index of the winning candidate in the list of candidates; here it is the candidate
    itself, which is the same for the lists that are used there. Where the norm rises most into the last layer, that
    code fails; here the window is then the last layer [our definition]. Positions before b are never sinks. As there, b
    itself is left out if it is the only candidate and ``clip`` is off.

    References
    ----------
    2512.22213; the rules are those of src/hidden_state_base.py of the released code.
    """
    found = sink_membership(hidden, bos_positions=bos_positions, threshold=threshold, clip=clip)
    lives = sink_lives(found.members, bos_margin=bos_margin, min_lifetime=min_lifetime)
    positions = np.flatnonzero(lives.lifetime)
    inside = np.flatnonzero(found.window)
    return SinkDetection(
        int(found.primary),
        int(inside[0]),
        int(inside[-1]) + 1,
        positions,
        tuple(tuple(np.flatnonzero(found.members[:, s]).tolist()) for s in positions),
        tuple(LABELS[lives.label[s]] for s in positions),
    )


def sink_membership(
    hidden: Any, *, bos_positions: Sequence[int] = (0,), threshold: float = 0.9, clip: bool = True
) -> SinkMembership:
    """Say for every layer and position whether it is a sink: steps 1 to 3 of `detect_sinks`.

    Parameters
    ----------
    hidden, bos_positions, threshold, clip
        As in `detect_sinks`.

    Returns
    -------
    SinkMembership

    Raises
    ------
    ValueError
        As in `detect_sinks`.
    """
    hidden, candidates = _checked(hidden, bos_positions, clip=clip)
    require(0 < threshold < 1, f"threshold={threshold!r} must lie between 0 and 1")
    n_layers, length, _ = hidden.shape
    b = _primary(hidden, candidates)  # 1
    start, end = _window(hidden[:, b]) if clip else (0, n_layers)  # 2
    layer, position = np.arange(n_layers), np.arange(length)
    window = (start <= layer) & (layer < end)  # (N,)
    # eq: ss-member
    parallel = np.abs(primary_cosines(hidden, b)) > threshold  # (N, T)
    members = np.asarray(window[:, None] & parallel & (position > b))  # 3
    members[:, b] = window & (clip or len(candidates) > 1)
    return SinkMembership(np.array(b), window, members)


def primary_cosines(hidden: Any, primary: int) -> np.ndarray:
    """Compare every position with the primary sink, layer by layer.

    Parameters
    ----------
    hidden : array_like, shape (N, T, d)
        Block outputs.
    primary : int
        The position b.

    Returns
    -------
    ndarray, shape (N, T)
        Cosines, in the dtype of ``hidden``; 0 where a vector is zero.

    Raises
    ------
    ValueError
        If ``hidden`` is not three-dimensional or not finite, or ``primary`` is no position.
    """
    hidden = _finite_layers(hidden)
    length = hidden.shape[1]
    require(0 <= primary < length, f"primary={primary!r} must be a position below {length}")
    return cosine_similarity(hidden, hidden[:, primary, None])  # (N, T)


def cosine_similarity(x: Any, y: Any) -> np.ndarray:
    """Return the cosine of the angle between vectors, 0 if one of them is zero.

    Parameters
    ----------
    x, y : array_like, shape (..., d)
        Vectors; leading axes broadcast.

    Returns
    -------
    ndarray, shape (...)
        In the common dtype; float16 and bfloat16 are computed in float32, their squares overflow too early.
    """
    x, y = as_float("x", x), as_float("y", y)
    dtype = np.promote_types(x.dtype, y.dtype)
    x, y = _wide(x), _wide(y)
    # eq: ss-cosine
    lengths = np.maximum(_norm(x), SHORTEST_NORM) * np.maximum(_norm(y), SHORTEST_NORM)  # (...)
    # einsum, because x * y would take the memory of all hidden states once more
    return np.asanyarray((np.einsum("...d,...d->...", x, y) / lengths).astype(dtype, copy=False))


def sink_lives(members: Any, *, bos_margin: int = 15, min_lifetime: int = 5) -> SinkLives:
    """Count for each position the layers on which it is a sink.

    Parameters
    ----------
    members : array_like of bool, shape (N, T)
        From `sink_membership`.
    bos_margin, min_lifetime : int
        See `label_sinks`.

    Returns
    -------
    SinkLives

    Raises
    ------
    ValueError
        If ``members`` is no boolean matrix, N = 0, or an option is negative.
    """
    members = as_bool("members", members, ndim=2)
    n_layers = members.shape[0]
    require(n_layers >= 1, "members has no layer")
    lifetime = np.sum(members, axis=0)  # (T,)
    first = np.where(lifetime > 0, np.argmax(members, axis=0), -1)  # (T,)
    return SinkLives(first, lifetime, _label_codes(lifetime, n_layers, bos_margin, min_lifetime))


def label_sinks(lifetimes: Any, n_layers: int, *, bos_margin: int = 15, min_lifetime: int = 5) -> tuple[str, ...]:
    """Name sinks by how long they last.

    Parameters
    ----------
    lifetimes : array_like of int, shape (K,)
        On how many layers each is a sink.
    n_layers : int
        The number of layers L of the model.
    bos_margin : int
        From L − bos_margin layers on a sink is a ``bos_sink``: it lasts as the primary sink does.
    min_lifetime : int
        From this number of layers on a shorter-lived one is ``secondary``; below it is ``noise``.

    Returns
    -------
    tuple of str
        One of `LABELS` each.

    Raises
    ------
    ValueError
        If a lifetime does not lie between 0 and L, L < 1, or an option is negative.

    Notes
    -----
    15 and 5 are the constants of the released code; they suit models of 28 layers or more. In shallower ones the two
    ranges overlap, and the longer one wins: with L = 18 three layers make a ``bos_sink``. Older result files of the
    authors call secondary sinks "cliff".
    """
    lifetimes = as_integer("lifetimes", lifetimes, ndim=1)
    require(n_layers >= 1, f"n_layers={n_layers!r} must be >= 1")
    require(
        np.all((lifetimes >= 0) & (lifetimes <= n_layers)), f"lifetimes={lifetimes!r} must lie between 0 and {n_layers}"
    )
    return tuple(LABELS[code] for code in _label_codes(lifetimes, n_layers, bos_margin, min_lifetime))


def sink_levels(detection: SinkDetection) -> np.ndarray:
    """Return the level of each sink: its first layer and its lifetime.

    Parameters
    ----------
    detection : SinkDetection
        From `detect_sinks`.

    Returns
    -------
    ndarray of int, shape (K, 2)
    """
    return np.array([(layers[0], len(layers)) for layers in detection.layers], dtype=np.int64).reshape(-1, 2)


def _checked(hidden: Any, bos_positions: Sequence[int], *, clip: bool) -> tuple[np.ndarray, np.ndarray]:
    hidden = _finite_layers(hidden)
    n_layers, length, _ = hidden.shape
    least = 3 if clip else 1
    layers = "1 layer" if least == 1 else "3 layers to find a window"
    require(n_layers >= least, f"hidden has {n_layers} layers, needs at least {layers}")
    candidates = as_integer("bos_positions", bos_positions, ndim=1)
    require(candidates.size >= 1, "bos_positions is empty, expected at least one candidate")
    inside = np.all((candidates >= 0) & (candidates < length))
    require(inside, f"bos_positions={candidates.tolist()} must be positions from 0 to {length - 1}")
    return _wide(hidden), candidates


def _finite_layers(hidden: Any) -> np.ndarray:
    array: np.ndarray = as_float("hidden", hidden, ndim=3)
    for states in array:
        require_finite("hidden", states)
    return array


def _primary(hidden: np.ndarray, candidates: np.ndarray) -> int:
    """Return the candidate of the largest mean norm, the first of equals."""
    # eq: ss-primary
    return int(candidates[np.argmax(np.mean(_norm(hidden[:, candidates]), axis=0))])


def _window(states: np.ndarray) -> tuple[int, int]:
    """Return the layers start … end − 1 on which the primary sink, with states (N, d), is one."""
    # eq: ss-window
    rise = np.diff(_norm(states))  # (N − 1,)
    start = int(np.argmax(rise)) + 1
    fall = rise[start:]
    return start, start + 1 + (int(np.argmin(fall)) if fall.size else 0)


def _label_codes(lifetimes: np.ndarray, n_layers: int, bos_margin: int, min_lifetime: int) -> np.ndarray:
    require(bos_margin >= 0, f"bos_margin={bos_margin!r} must be >= 0")
    require(min_lifetime >= 0, f"min_lifetime={min_lifetime!r} must be >= 0")
    # eq: ss-label
    lasting = (lifetimes > 0) & (lifetimes >= n_layers - bos_margin)
    return np.where(lasting, 2, np.where((lifetimes > 0) & (lifetimes >= min_lifetime), 1, 0))


def _norm(x: np.ndarray) -> np.ndarray:
    return np.asanyarray(np.sqrt(np.einsum("...d,...d->...", x, x)))


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)
