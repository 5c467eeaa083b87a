"""Train gates by hand-written gradients to find the object, or the part of a photograph, that was asked for.

A model is a gate, one factor for each channel, a sum over channels and a bias; its logit of a pixel is trained by
binary cross-entropy. The variants differ in where the gate comes from and how it is shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.cbook import get_sample_data
from matplotlib.image import imread

from refattn.layers.sentence_attention import SentenceAttentionWeights, sentence_gate
from refattn.layers.sentence_attention_head import mean_iou

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES, TEXT, NOISE = 10, 16, 0.3


class Questions(NamedTuple):
    """Pictures and what is asked about them: X (B, C, H, W), t (B, D), the asked channel (B,), the mask (B, H, W)."""

    features: np.ndarray
    text: np.ndarray
    asked: np.ndarray
    mask: np.ndarray


class Variant(NamedTuple):
    """Where a gate comes from (the text, the image, or nowhere), and how it is made."""

    source: str = "text"
    activation: str = "softmax"
    layer_norm: bool = True


VARIANTS = {
    "SAB": Variant(),
    "SAB without LayerNorm": Variant(layer_norm=False),
    "sigmoid gate": Variant(activation="sigmoid"),
    "image gate, softmax": Variant(source="image"),
    "image gate, sigmoid": Variant(source="image", activation="sigmoid"),
    "no gate": Variant(source="nothing"),
}


def quadrants(rng: np.random.Generator, embedding: np.ndarray, count: int, scale: int = 1) -> Questions:
    """Draw pictures of 8·scale pixels a side with four objects of distinct classes, one in each quadrant."""
    classes = rng.random((count, CLASSES)).argsort(axis=1)[:, :4]
    maps = np.zeros((count, CLASSES, 8 * scale, 8 * scale))
    steps = np.arange(8 * scale)
    for quadrant in range(4):
        size = rng.integers(2 * scale, 3 * scale + 1, (2, count, 1))
        corner = rng.integers(0, scale + 1, (2, count, 1)) + 4 * scale * np.array(divmod(quadrant, 2))[:, None, None]
        inside = (steps >= corner) & (steps < corner + size)  # rows and columns, (2, B, side)
        maps[np.arange(count), classes[:, quadrant]] += inside[0][:, :, None] & inside[1][:, None, :]
    asked = classes[np.arange(count), rng.integers(4, size=count)]
    mask = maps[np.arange(count), asked] > 0
    features = maps + 0.2 * rng.standard_normal(maps.shape)
    return Questions(features, speak(rng, embedding, asked), asked, mask)


def speak(rng: np.random.Generator, embedding: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return sentences: the asked class's embedding, said a little differently each time."""
    return np.asarray(embedding[asked] + NOISE * rng.standard_normal((len(asked), embedding.shape[1])))


class Model(NamedTuple):
    """A gate and what follows it: logit = Σ_c factor_c g_c X_c + bias."""

    gate: SentenceAttentionWeights
    factor: np.ndarray
    bias: np.ndarray


def start(rng: np.random.Generator, width: int, channels: int) -> Model:
    """Draw a model whose gates are nearly even."""
    w1 = rng.standard_normal((width, 4 * width)) / np.sqrt(width)
    w2 = rng.standard_normal((4 * width, channels)) / np.sqrt(4 * width)
    hidden = (np.zeros(4 * width), np.ones(4 * width), np.zeros(4 * width))
    return Model(SentenceAttentionWeights(w1, *hidden, w2, np.zeros(channels)), np.ones(channels), np.zeros(1))


def source(variant: Variant, questions: Questions) -> np.ndarray:
    """Return what the gate is computed from."""
    return questions.text if variant.source == "text" else np.mean(questions.features, axis=(2, 3))


def gates(model: Model, variant: Variant, questions: Questions) -> np.ndarray:
    """Return the gates (B, C), by the reference."""
    if variant.source == "nothing":
        return np.full(questions.features.shape[:2], 1.0 / len(model.factor))
    options = {"activation": variant.activation, "layer_norm": variant.layer_norm}
    return sentence_gate(source(variant, questions), model.gate, **options)


def logits(model: Model, variant: Variant, questions: Questions) -> np.ndarray:
    """Return one logit for each pixel (B, H, W)."""
    factors = gates(model, variant, questions) * model.factor
    return np.asarray(np.einsum("bchw,bc->bhw", questions.features, factors) + model.bias)


def gate_gradient(g: np.ndarray, dg: np.ndarray, s: np.ndarray, variant: Variant, w: SentenceAttentionWeights) -> list:
    """Go back through softmax or sigmoid, W₂, ReLU, LayerNorm and W₁."""
    softmax = variant.activation == "softmax"
    dlogits = g * (dg - np.sum(g * dg, axis=1, keepdims=True)) if softmax else g * (1 - g) * dg
    a = s @ w.w1 + w.b1
    deviation = np.sqrt(a.var(axis=1, keepdims=True) + 1e-5)
    n = (a - a.mean(axis=1, keepdims=True)) / deviation
    h = n * w.ln_scale + w.ln_shift if variant.layer_norm else a
    dh = (dlogits @ w.w2.T) * (h > 0)
    da, dscale, dshift = dh, np.zeros_like(w.ln_scale), np.zeros_like(w.ln_shift)
    if variant.layer_norm:
        dn, dscale, dshift = dh * w.ln_scale, np.sum(dh * n, axis=0), np.sum(dh, axis=0)
        da = (dn - dn.mean(axis=1, keepdims=True) - n * np.mean(dn * n, axis=1, keepdims=True)) / deviation
    return [s.T @ da, da.sum(axis=0), dscale, dshift, np.maximum(h, 0).T @ dlogits, dlogits.sum(axis=0)]


def gradient(model: Model, variant: Variant, questions: Questions) -> list[np.ndarray]:
    """Return the derivatives of the mean cross-entropy with respect to the gate's weights, factors and bias."""
    g = gates(model, variant, questions)
    z = np.einsum("bchw,bc->bhw", questions.features, g * model.factor) + model.bias
    dz = (1.0 / (1.0 + np.exp(-z)) - questions.mask) / z.size
    pooled = np.einsum("bchw,bhw->bc", questions.features, dz)
    last = [np.sum(g * pooled, axis=0), np.sum(dz, keepdims=True).reshape(1)]
    if variant.source == "nothing":
        return [*map(np.zeros_like, model.gate), *last]
    return [*gate_gradient(g, pooled * model.factor, source(variant, questions), variant, model.gate), *last]


@dataclass
class Adam:
    """Adam with its usual constants, over a list of arrays."""

    rate: float = 0.02
    moments: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    steps: int = 0

    def __call__(self, arrays: list[np.ndarray], slopes: list[np.ndarray]) -> list[np.ndarray]:
        """Return the arrays one step further."""
        self.steps += 1
        before = self.moments or [(np.zeros_like(x), np.zeros_like(x)) for x in arrays]
        self.moments = [
            (0.9 * m + 0.1 * s, 0.999 * v + 0.001 * s * s) for (m, v), s in zip(before, slopes, strict=True)
        ]
        first, second = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        return [
            x - self.rate * (m / first) / (np.sqrt(v / second) + 1e-8)
            for x, (m, v) in zip(arrays, self.moments, strict=True)
        ]


def train(
    model: Model,
    variant: Variant,
    draw: Callable[[], Questions],
    steps: int,
    watch: Callable[[Model], None] = lambda _model: None,
) -> Model:
    """Train on fresh questions at every step."""
    adam = Adam()
    for _ in range(steps):
        watch(model)
        *gate, factor, bias = adam([*model.gate, model.factor, model.bias], gradient(model, variant, draw()))
        model = Model(SentenceAttentionWeights(*gate), factor, bias)
    watch(model)
    return model


def entropy(g: np.ndarray) -> float:
    """Return the mean entropy of gates, each taken as shares of its sum, in nats."""
    share = g / g.sum(axis=1, keepdims=True)
    return float(np.mean(-np.sum(share * np.log(np.maximum(share, 1e-300)), axis=1)))


def mass(g: np.ndarray, asked: np.ndarray) -> float:
    """Return the mean share of the gate that the asked channel gets."""
    return float(np.mean(g[np.arange(len(g)), asked] / g.sum(axis=1)))


class Course(NamedTuple):
    """A trained model, its embedding of classes, its scores on fresh questions, and its entropies while it learned."""

    model: Model
    embedding: np.ndarray
    iou: float
    mass: float
    entropies: list[float]


def quadrant_course(variant: Variant, seed: int, steps: int) -> Course:
    """Train one variant on the quadrants and test it on 400 pictures."""
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((CLASSES, TEXT))
    test = quadrants(rng, embedding, 400)
    entropies: list[float] = []
    model = train(
        start(rng, TEXT if variant.source == "text" else CLASSES, CLASSES),
        variant,
        lambda: quadrants(rng, embedding, 32),
        steps,
        lambda now: entropies.append(entropy(gates(now, variant, test))),
    )
    found = logits(model, variant, test) > 0
    return Course(
        model, embedding, mean_iou(found, test.mask), mass(gates(model, variant, test), test.asked), entropies
    )


class Photograph(NamedTuple):
    """A photograph as a feature map (C, H, W), the label of each patch (H, W), and each patch's mean colour."""

    features: np.ndarray
    labels: np.ndarray
    colours: np.ndarray


def photograph(patch: int = 8, projections: int = 64, parts: int = 4) -> Photograph:
    """Cut matplotlib's sample photograph into patches, project them at random, and sort them by their colour."""
    rng = np.random.default_rng(0)
    with get_sample_data("grace_hopper.jpg") as file:
        picture = imread(file, format="jpg")[..., :3] / 255.0
    H, W = (n // patch for n in picture.shape[:2])
    cut = picture[: H * patch, : W * patch].reshape(H, patch, W, patch, 3).swapaxes(1, 2)  # (H, W, patch, patch, 3)
    rows = cut.reshape(H * W, -1)
    projected = (rows - rows.mean(axis=0)) / rows.std() @ rng.standard_normal((rows.shape[1], projections))
    projected /= projected.std(axis=0)
    channels = np.maximum(np.concatenate([projected, -projected], axis=1), 0)  # either sign has a channel of its own
    colours = cut.mean(axis=(2, 3))
    labels = clusters(np.random.default_rng(1), colours.reshape(-1, 3), parts)
    return Photograph(channels.T.reshape(-1, H, W), labels.reshape(H, W), colours)


def clusters(rng: np.random.Generator, points: np.ndarray, count: int) -> np.ndarray:
    """Sort points into clusters by Lloyd's algorithm, from centres far from one another."""
    centres = points[rng.integers(len(points), size=1)]
    while len(centres) < count:
        distance = np.min(np.sum((points[:, None] - centres) ** 2, axis=-1), axis=1)
        centres = np.concatenate([centres, points[[distance.argmax()]]])
    for _ in range(30):
        labels = np.sum((points[:, None] - centres) ** 2, axis=-1).argmin(axis=1)
        centres = np.stack([points[labels == c].mean(axis=0) for c in range(count)])
    return labels


def windows(
    rng: np.random.Generator, photo: Photograph, embedding: np.ndarray, count: int, side: int = 16
) -> Questions:
    """Draw windows of the left half of a photograph, and ask for the part that one of their patches belongs to."""
    H, W = photo.labels.shape
    tops, lefts = rng.integers(0, H - side + 1, count), rng.integers(0, W // 2 - side + 1, count)
    cuts = [(slice(y, y + side), slice(x, x + side)) for y, x in zip(tops, lefts, strict=True)]
    labels = np.stack([photo.labels[cut] for cut in cuts])
    asked = labels.reshape(count, -1)[np.arange(count), rng.integers(side * side, size=count)]
    features = np.stack([photo.features[:, *cut] for cut in cuts])
    return Questions(features, speak(rng, embedding, asked), asked, labels == asked[:, None, None])


def right_half(rng: np.random.Generator, photo: Photograph, embedding: np.ndarray) -> Questions:
    """Ask for every part of the half that no training window shows."""
    half = photo.labels.shape[1] // 2
    asked = np.arange(len(embedding))
    features = np.broadcast_to(photo.features[:, :, half:], (len(asked), *photo.features[:, :, half:].shape))
    mask = photo.labels[:, half:] == asked[:, None, None]
    return Questions(features, speak(rng, embedding, asked), asked, mask)


def photo_course(photo: Photograph, variant: Variant, seed: int, steps: int) -> tuple[Model, np.ndarray, float]:
    """Train on windows of the left half of a photograph, and test on the right half."""
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((int(photo.labels.max()) + 1, TEXT))
    channels = len(photo.features)
    model = train(
        start(rng, TEXT if variant.source == "text" else channels, channels),
        variant,
        lambda: windows(rng, photo, embedding, 8),
        steps,
    )
    test = right_half(rng, photo, embedding)
    return model, embedding, mean_iou(logits(model, variant, test) > 0, test.mask)
