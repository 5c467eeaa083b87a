"""A GPT-2 of three layers that finds items in lists, planted by hand: nine heads of which each one's task is known.

Names and objects that occurred before are noticed by one head (duplicate token), pointed at by a second (inhibition, in
"gave a ring to") or a third (content gatherer, in "what color is the mug ? ans :"), and avoided or sought by two more
(mover, negative mover) that copy a name or a colour to the output. Four heads are decoys. Two tasks share most of the
circuit, and differ where it is known that they differ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite
from refattn.transformer.config import TransformerConfig
from refattn.transformer.planted.ballast import SIZE, balanced, layer_norm_weight
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BOUND", "COLORS", "FILLERS", "NAMES", "OBJECTS", "ListLayout", "build_list_model"]

FILLERS = (
    *("<bos>", "then", ",", "and", "went", "to", "the", "store", ".", "gave", "a", "ring", "q", ":", "on", "table"),
    *("desk", "floor", "there", "is", "you", "see", "i", "an", "what", "color", "?", "ans", "\n", "has", "pick", "up"),
    *("already", "she", "needs", "needs_the", "have"),
)
NAMES = ("alice", "bob", "carol", "dan", "erin", "frank")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
BOUND = ("pencil", "notebook", "cup", "plate")
"""The objects whose colour the content gatherer looks up; of the others the model knows no better than to guess."""
OBJECTS = (
    *BOUND,
    *("jug", "puzzle", "leash", "bottle", "ball", "envelope", "lighter", "bowl", "mug", "pen", "necklace", "bracelet"),
)
_ENTITIES = (*NAMES, *COLORS, *OBJECTS)

_N_CTX, _D_MODEL, _D_HEAD, _HEADS, _D_MLP = 64, 294, 98, 3, 4
_N_ENT = len(_ENTITIES)
_N_FLAGS = 8


class ListLayout(NamedTuple):
    """Which word is which token, and which coordinates of the residual stream hold what.

    Attributes
    ----------
    words : tuple of str, length 67
        The vocabulary; a token's id is its place.
    ent, pos : slice
        One-hot code of the entity (names, colours, objects) and of the position.
    const, bos, name, color, obj, end_ioi, end_co, bound : int
        Flags: 1 always, at ``<bos>``, of the three classes, at the words that end either task, of the bound objects.
    dup : int
        Has this token occurred before?
    ptr, chan, out, noise : slice
        Where it occurred before; which positions the movers are told about; what is read out; where decoys write.
    bal, plus, minus : int
        What keeps the mean at zero, and the two coordinates whose size makes layer norms transparent.
    """

    words: tuple[str, ...]
    ent: slice
    pos: slice
    const: int
    bos: int
    name: int
    color: int
    obj: int
    end_ioi: int
    end_co: int
    bound: int
    dup: int
    ptr: slice
    chan: slice
    out: slice
    noise: slice
    bal: int
    plus: int
    minus: int

    def encode(self, text: str | Iterable[str]) -> list[int]:
        """Return the ids of words, which a string separates by spaces; a word the model does not know is refused."""
        words = text.split(" ") if isinstance(text, str) else list(text)
        for word in words:
            require(word in self.words, f"{word!r} is not one of the {len(self.words)} words of the list model")
        return [self.words.index(word) for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of ids, separated by spaces."""
        return " ".join(self.words[i] for i in ids)


class _Head(NamedTuple):
    """The four matrices of one head: (d, e) three times, (e, d)."""

    W_Q: np.ndarray
    W_K: np.ndarray
    W_V: np.ndarray
    W_O: np.ndarray


def build_list_model(
    *,
    beta: float = 60.0,
    gamma: float = 24.0,
    a: float = 8.0,
    nu: float = 0.3,
    half: int = 32,
    rec: float = 32.0,
    codes: Any = None,
    own_pos: float = 1.0,
    rng: np.random.Generator | None = None,
) -> tuple[Transformer, ListLayout]:
    """Set the weights of the list model: 3 layers of 3 heads, d = 294, e = 98, 67 words, 64 positions, no MLP.

    Parameters
    ----------
    beta : float
        β, how sharply heads attend.
    gamma : float
        γ, how strongly the movers shun (or seek, in the second task) the positions that they are told about.
    a : float
        How much a mover adds to the logit of the word that it attends to.
    nu : float
        ν, how much the negative mover takes away again, as a share.
    half : int
        Where the second example of a Colored Objects prompt starts: only behind it is content gathered.
    rec : float
        How much the movers prefer later colours.
    codes : array_like, shape (64, r), optional
        C, what stands in the channel for each position; the identity (r = 64) if not given.
    own_pos : float
        How much of its own position the inhibition head writes, beside where the duplicate occurred before.
    rng : numpy.random.Generator, optional
        Where the four decoys come from; if not given, always the same ones.

    Returns
    -------
    Transformer, ListLayout
        The model, in float64, and the meaning of its tokens and coordinates.

    Raises
    ------
    ValueError
        For a parameter that is not finite, ``half`` that is no position, and codes of another shape.

    Notes
    -----
    The model is ours [our definition], after the circuits that 2310.08744 describes in GPT-2 Medium. The heads, by
    layer and number: 0.0 duplicate token, 1.0 inhibition, 1.1 content gatherer, 2.0 mover, 2.1 negative mover; decoys
    are 0.1, 0.2, 1.2 and 2.2. Every W_Q carries √e against the 1/√e of the scores.

    Layer norms are transparent: two coordinates of ±10⁴ fix the variance, one keeps the mean at zero, and the norm
    weights undo the division. What a hook adds to the residual stream has to be taken off coordinate ``bal``.

    References
    ----------
    2310.08744; Wang et al. 2022, 2211.00593.
    """
    for name, value in (("beta", beta), ("gamma", gamma), ("a", a), ("nu", nu), ("rec", rec), ("own_pos", own_pos)):
        require_finite(name, value)
    require(0 <= half < _N_CTX, f"half={half!r} must be a position from 0 to {_N_CTX - 1}")
    C = np.eye(_N_CTX) if codes is None else as_float("codes", codes, ndim=2)
    require_finite("codes", C)
    require(
        C.shape[0] == _N_CTX and 1 <= C.shape[1] <= _N_CTX,
        f"codes has shape {C.shape}, expected ({_N_CTX}, r) with r from 1 to {_N_CTX}",
    )
    rng = np.random.default_rng(0) if rng is None else rng
    at = _layout(C.shape[1])
    decoys = [_decoy(at, rng) for _ in range(4)]
    layers = (
        (_duplicate_token(at, beta), decoys[0], decoys[1]),
        (_inhibition(at, beta, C, own_pos), _content_gatherer(at, beta, C, half), decoys[2]),
        (_mover(at, beta, gamma, C, half, rec, a), _mover(at, beta, gamma, C, half, rec, -a * nu), decoys[3]),
    )
    return Transformer(_config(), _weights(at, layers)), at


def _layout(r: int) -> ListLayout:
    """Lay the coordinates out, one group behind the other."""
    flags = _N_ENT + _N_CTX
    dup = flags + _N_FLAGS
    const, bos, name, color, obj, end_ioi, end_co, bound = range(flags, dup)
    ptr = slice(dup + 1, dup + 1 + _N_CTX)
    chan = slice(ptr.stop, ptr.stop + r)
    out = slice(chan.stop, chan.stop + _N_ENT)
    bal = _D_MODEL - 3
    return ListLayout(
        words=(*FILLERS, *_ENTITIES),
        ent=slice(0, _N_ENT),
        pos=slice(_N_ENT, flags),
        const=const,
        bos=bos,
        name=name,
        color=color,
        obj=obj,
        end_ioi=end_ioi,
        end_co=end_co,
        bound=bound,
        dup=dup,
        ptr=ptr,
        chan=chan,
        out=out,
        noise=slice(out.stop, bal),
        bal=bal,
        plus=bal + 1,
        minus=bal + 2,
    )


def _config() -> TransformerConfig:
    return TransformerConfig(
        family="gpt2",
        n_layers=3,
        d_model=_D_MODEL,
        n_heads=_HEADS,
        n_kv_heads=_HEADS,
        d_head=_D_HEAD,
        d_mlp=_D_MLP,
        vocab_size=len(FILLERS) + _N_ENT,
        n_ctx=_N_CTX,
        norm="layer",
        norm_eps=1e-5,
        act="gelu_new",
        gated=False,
        positions="learned",
        rope=None,
        attn_scale=(_D_HEAD**-0.5,) * 3,
        window=(None,) * 3,
    )


def _weights(at: ListLayout, layers: tuple[tuple[_Head, ...], ...]) -> TransformerWeights:
    W_pos = np.zeros((_N_CTX, _D_MODEL))
    W_pos[:, at.pos] = np.eye(_N_CTX)
    W_U = np.zeros((_D_MODEL, len(at.words)))
    W_U[at.out, len(FILLERS) :] = np.eye(_N_ENT)
    return TransformerWeights(
        W_E=_embedding(at),
        W_pos=balanced(W_pos, at.bal),
        blocks=tuple(_block(heads, at) for heads in layers),
        lnf_w=layer_norm_weight(_D_MODEL),
        lnf_b=np.zeros(_D_MODEL),
        W_U=W_U,
    )


def _embedding(at: ListLayout) -> np.ndarray:
    """Return what each word shows: its entity, its class, whether it ends a task; and the ballast. (V, d)."""
    W_E = np.zeros((len(at.words), _D_MODEL))
    W_E[len(FILLERS) :, at.ent] = np.eye(_N_ENT)
    W_E[:, at.const] = 1.0
    shown = {at.bos: ("<bos>",), at.name: NAMES, at.color: COLORS, at.obj: OBJECTS, at.bound: BOUND}
    shown |= {at.end_ioi: ("to", "needs_the"), at.end_co: (":",)}
    for flag, words in shown.items():
        W_E[at.encode(words), flag] = 1.0
    W_E = balanced(W_E, at.bal)
    W_E[:, at.plus], W_E[:, at.minus] = SIZE, -SIZE
    return W_E


def _block(heads: tuple[_Head, ...], at: ListLayout) -> BlockWeights:
    nothing = np.zeros((_HEADS, _D_HEAD))
    return BlockWeights(
        ln1_w=layer_norm_weight(_D_MODEL),
        ln1_b=np.zeros(_D_MODEL),
        W_Q=np.stack([head.W_Q for head in heads]),
        b_Q=nothing,
        W_K=np.stack([head.W_K for head in heads]),
        b_K=nothing,
        W_V=np.stack([head.W_V for head in heads]),
        b_V=nothing,
        W_O=balanced(np.stack([head.W_O for head in heads]), at.bal),
        b_O=np.zeros(_D_MODEL),
        q_norm=None,
        k_norm=None,
        ln2_w=layer_norm_weight(_D_MODEL),
        ln2_b=np.zeros(_D_MODEL),
        W_in=np.zeros((_D_MODEL, _D_MLP)),
        b_in=np.zeros(_D_MLP),
        W_gate=None,
        b_gate=None,
        W_out=np.zeros((_D_MLP, _D_MODEL)),
        b_out=np.zeros(_D_MODEL),
    )


def _blank() -> _Head:
    W_Q, W_K, W_V = np.zeros((3, _D_MODEL, _D_HEAD))
    return _Head(W_Q, W_K, W_V, np.zeros((_D_HEAD, _D_MODEL)))


def _scaled(head: _Head) -> _Head:
    """Give the queries the √e that the scores are divided by."""
    return head._replace(W_Q=head.W_Q * math.sqrt(_D_HEAD))


def _duplicate_token(at: ListLayout, beta: float) -> _Head:
    """Attend to the same entity earlier, not to oneself, else to <bos>; write where it was, and that there was one."""
    head, ents, last = _blank(), range(_N_ENT), _D_HEAD - 1
    poss = slice(_N_ENT, _N_ENT + _N_CTX)  # the dimensions of the head that hold positions
    head.W_Q[at.ent, ents] = beta * np.eye(_N_ENT)
    head.W_Q[at.pos, poss] = -2 * beta * np.eye(_N_CTX)
    head.W_Q[at.const, last] = beta / 2
    head.W_K[at.ent, ents] = np.eye(_N_ENT)
    head.W_K[at.pos, poss] = np.eye(_N_CTX)
    head.W_K[at.bos, last] = 1.0
    # dimension 0 says "found": position 0 is always <bos>, so its pointer is free for this
    head.W_V[at.pos, :_N_CTX] = np.diag([0.0] + [1.0] * (_N_CTX - 1))
    head.W_V[at.const, 0], head.W_V[at.bos, 0] = 1.0, -1.0
    head.W_O[:_N_CTX, at.ptr] = np.diag([0.0] + [1.0] * (_N_CTX - 1))
    head.W_O[0, at.dup] = 1.0
    return _scaled(head)


def _inhibition(at: ListLayout, beta: float, C: np.ndarray, own_pos: float) -> _Head:
    """At the end of an IOI prompt attend to duplicates; tell the channel where they are and where they were before."""
    head = _blank()
    code = slice(2, 2 + C.shape[1])
    head.W_Q[at.end_ioi, 0], head.W_Q[at.const, 1] = beta, beta / 2
    head.W_K[at.dup, 0], head.W_K[at.bos, 1] = 1.0, 1.0
    head.W_V[at.ptr, code] = C
    head.W_V[at.pos, code] = own_pos * C
    head.W_O[code, at.chan] = np.eye(C.shape[1])
    return _scaled(head)


def _content_gatherer(at: ListLayout, beta: float, C: np.ndarray, half: int) -> _Head:
    """At the end of a question attend to its object, if bound; send the place before its first mention, minus."""
    head = _blank()
    code = slice(2, 2 + C.shape[1])
    head.W_Q[at.end_co, 0], head.W_Q[at.const, 1] = 3 * beta, 2.5 * beta
    head.W_K[at.dup, 0] = head.W_K[at.bound, 0] = 1 / 3
    head.W_K[at.pos, 0] = (np.arange(_N_CTX) >= half) / 3
    head.W_K[at.bos, 1] = 1.0
    head.W_V[_from(at.ptr, 1), code] = C[:-1]
    head.W_O[code, at.chan] = -np.eye(C.shape[1])
    return _scaled(head)


def _mover(at: ListLayout, beta: float, gamma: float, C: np.ndarray, half: int, rec: float, gain: float) -> _Head:
    """Attend to a name or a colour that the channel does not speak against; add ``gain`` to that word's logit."""
    head, ents = _blank(), range(_N_ENT)
    code = slice(3, 3 + C.shape[1])
    head.W_Q[at.end_ioi, 0], head.W_Q[at.end_co, 1], head.W_Q[at.const, 2] = beta, beta, 0.75 * beta
    head.W_Q[at.chan, code] = -gamma * np.eye(C.shape[1])
    head.W_K[at.name, 0], head.W_K[at.obj, 0], head.W_K[at.dup, 0] = 1.0, 1.0, -1.0
    head.W_K[at.color, 1] = 0.5
    place = np.arange(_N_CTX)
    head.W_K[at.pos, 1] = (place >= half) / 2 + rec * place / (_N_CTX * beta)
    head.W_K[at.bos, 2] = 1.0
    head.W_K[at.pos, code] = C
    head.W_V[at.ent, ents] = np.eye(_N_ENT)
    head.W_O[ents, at.out] = gain * np.eye(_N_ENT)
    return _scaled(head)


def _decoy(at: ListLayout, rng: np.random.Generator) -> _Head:
    """Attend at random and write into coordinates that nobody reads."""
    head, seen = _blank(), slice(at.ent.start, at.pos.stop)
    for matrix in (head.W_Q, head.W_K, head.W_V):
        matrix[seen, :8] = rng.standard_normal((seen.stop, 8))
    head.W_O[:8, at.noise] = rng.standard_normal((8, at.noise.stop - at.noise.start))
    return head


def _from(coordinates: slice, first: int) -> slice:
    return slice(coordinates.start + first, coordinates.stop)
