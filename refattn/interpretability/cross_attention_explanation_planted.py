"""An encoder–decoder whose explanation is known: what it hears, where it looks, and what the encoder mixed [our own].

Word i is spoken in segment i, as energy in band i. The encoder pools frames and may carry content one segment on; the
heads look at the frames where a word's content is, and may waste attention on silence; the decoder reads the word off
what was attended. Two dials make attention a worse explanation: λ, how much the encoder mixes context, and σ, how much
attention goes to a frame without content. Equation labels (ce-15) to (ce-17) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require
from refattn.primitives.softmax import softmax

__all__ = ["PlantedSpeech", "planted_speech"]


class PlantedSpeech(NamedTuple):
    """A spoken sentence of I words, and the model that writes it down.

    Attributes
    ----------
    features : ndarray, shape (T, F)
        X: the spectrogram.
    attention : ndarray, shape (L, H, I, T')
        A: where each head looks for each word; it does not depend on the input.
    truth : ndarray of bool, shape (I, T)
        Where each word is spoken.
    targets : ndarray of int, shape (I,)
        The words that are written: word i is entry i of the vocabulary.
    per, r : int
        Encoder frames of a segment, and input frames of an encoder frame.
    lam, gain : float
        λ, and the decoder's certainty.
    """

    features: np.ndarray
    attention: np.ndarray
    truth: np.ndarray
    targets: np.ndarray
    per: int
    r: int
    lam: float
    gain: float

    def encode(self, x: Any) -> np.ndarray:
        """Pool r frames into one, and carry the share λ one segment on: (..., T, F) to (..., T', F)."""
        x = as_float("x", x)
        shape = self.features.shape
        require(x.shape[-2:] == shape, f"x has shape {x.shape}, expected (..., {shape[0]}, {shape[1]})")
        h = x.reshape(*x.shape[:-2], -1, self.r, shape[1]).mean(axis=-2)  # (..., T', F)
        later = np.zeros_like(h)
        later[..., self.per : -1, :] = h[..., : -self.per - 1, :]  # never into the silent frame
        # eq: ce-15
        return np.asanyarray((1 - self.lam) * h + self.lam * later)

    def decode(self, h: Any) -> np.ndarray:
        """Read each word off the frames that the heads attend to: (..., T', F) to distributions (..., I, F)."""
        h = as_float("h", h)
        frames, bands = self.attention.shape[-1], self.features.shape[1]
        require(h.shape[-2:] == (frames, bands), f"h has shape {h.shape}, expected (..., {frames}, {bands})")
        # the mean over heads and the sum over frames are linear: one mean of the weights does for all heads
        attended = self.attention.mean(axis=(0, 1)).astype(h.dtype) @ h  # (..., I, F)
        # eq: ce-17
        return softmax(self.gain * attended, axis=-1)

    def model(self, x: Any) -> np.ndarray:
        """Encode and decode: (..., T, F) to distributions (..., I, F)."""
        return self.decode(self.encode(x))


def planted_speech(
    *,
    I: int = 6,
    F: int = 8,
    r: int = 4,
    per: int = 4,
    L: int = 2,
    H: int = 4,
    lam: float = 0.0,
    sigma: float = 0.0,
    gain: float = 8.0,
    seed: int = 0,
) -> PlantedSpeech:
    """Speak a sentence and build the model that writes it down.

    Parameters
    ----------
    I, F : int
        Words, and bands; a word is the band that carries it, so F ≥ I. The vocabulary has F entries.
    r, per : int
        Input frames of an encoder frame, and encoder frames of a word.
    L, H : int
        Decoder layers and heads. The heads of a layer share a word's segment out; later layers look less sharply.
    lam : float
        λ in [0, 1]: the share of each frame's content that the encoder carries one segment on.
    sigma : float
        σ in [0, 1]: the share of attention that goes to the silent frame.
    gain : float
        How certain the decoder is.
    seed : int
        Of the spectrogram.

    Returns
    -------
    PlantedSpeech
        T' = (I + 1) per + 1 encoder frames: the words, a segment into which the last may be carried, and silence.

    Raises
    ------
    ValueError
        If a size is below 1, F < I, or λ or σ is outside [0, 1].
    """
    require(min(I, F, r, per, L, H) >= 1, f"sizes {(I, F, r, per, L, H)!r} must be at least 1")
    require(I <= F, f"F={F!r} must be at least I={I!r}: each word needs a band")
    require(0 <= lam <= 1, f"lam={lam!r} must lie in [0, 1]")
    require(0 <= sigma <= 1, f"sigma={sigma!r} must lie in [0, 1]")
    rng = np.random.default_rng(seed)
    frames = (I + 1) * per + 1
    truth = np.arange(r * frames) // (per * r) == np.arange(I)[:, None]  # (I, T)
    X = 0.05 * np.abs(rng.standard_normal((r * frames, F)))  # (T, F)
    for i in range(I):
        X[truth[i], i] += 1 + 0.3 * rng.random(per * r)
    X[-r:] = 0  # silence
    A = _heads(I, per, L, H, lam=lam, sigma=sigma)
    return PlantedSpeech(X, A, truth, np.arange(I), per, r, lam, gain)


def _heads(I: int, per: int, L: int, H: int, *, lam: float, sigma: float) -> np.ndarray:
    """Return where each head looks: at its part of the word, there and one segment later, and at silence."""
    t = np.arange((I + 1) * per + 1)
    word, head, layer = np.arange(I)[:, None], np.arange(H)[:, None, None], np.arange(L)[:, None, None, None]
    centre = word * per + (head + 0.5) * per / H - 0.5  # (H, I, 1)
    spoken = t < t[-1]

    def look(at: np.ndarray) -> np.ndarray:
        return softmax(-(((t - at) / (0.35 + 0.15 * layer)) ** 2) / 2, where=spoken)  # (L, H, I, T')

    # eq: ce-16
    content = (1 - lam) * look(centre) + lam * look(centre + per)
    return np.asarray((1 - sigma) * content + sigma * ~spoken)
