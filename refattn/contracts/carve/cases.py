"""How inputs of CARVE are drawn: attention that is nowhere zero, score maps of whole numbers, pictures with hues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "COLOR",
    "CONTRAST",
    "ENTROPY",
    "FAMILIES",
    "FUSE",
    "IMAGE",
    "LABEL",
    "MASK",
    "RESIZE",
    "SCORES",
    "SHAPES",
    "TEXTURE",
    "color_sizes",
    "contrast_sizes",
    "entropy_sizes",
    "fuse_sizes",
    "image_sizes",
    "label_sizes",
    "mask_sizes",
    "resize_sizes",
    "texture_sizes",
]

FAMILIES = ("normal", "peaky", "tied")
SCORES = ("distinct", "tied", "blobs")
SHAPES = ("sparse", "dense", "walls")
Built = tuple[dict[str, Any], dict[str, Any]]


def attention(rng: np.random.Generator, shape: tuple[int, ...], family: str) -> np.ndarray:
    """Draw attention to image tokens: positive and within a factor of twenty, so that quotients are tame."""
    return np.asarray(0.2 * np.exp(np.clip(fill(rng, shape, family), -1.5, 1.5)))


def fuse_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw the maps of two runs."""
    (rows, columns), L = sizes["grid"], sizes["L"]
    task, general = (attention(rng, (sizes[S], L, rows * columns), family) for S in ("S", "G"))
    return {"task_maps": task, "general_maps": general}, given(
        sizes, "grid", "size", "layers", "lam", "steps", "ignore_missing"
    )


def contrast_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw a pair of maps; some tokens may get nothing for the task."""
    task, general = (attention(rng, (sizes["B"], sizes["N"]), family) for _ in range(2))
    if sizes.get("holes"):
        task[..., ::3] = 0.0
    return {"a_task": task, "a_general": general}, given(sizes, "lam")


def image_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw weights whose rows sum to 1."""
    logits = fill(rng, (sizes["B"], sizes["H"], sizes["T"], sizes["K"]), family)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return {"weights": weights / weights.sum(axis=-1, keepdims=True)}, given(sizes, "image_slice")


def resize_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw a map or an image."""
    shape = (sizes["h"], sizes["w"], *([sizes["c"]] if "c" in sizes else []))
    return {"image": fill(rng, shape, family)}, given(sizes, "size")


def mask_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw scores whose sums are exact: whole numbers, all different, few, or in hills."""
    h, w = sizes["h"], sizes["w"]
    if family == "distinct":
        scores = rng.permutation(h * w).reshape(h, w) + 1.0
    elif family == "tied":
        scores = rng.integers(1, 5, size=(h, w)).astype(np.float64)
    else:
        y, x = np.mgrid[:h, :w]
        centres = rng.integers([h, w], size=(4, 2))
        hills = [np.maximum(0, 4 - abs(y - cy) - abs(x - cx)) for cy, cx in centres]
        scores = 1.0 + np.max(hills, axis=0)
    return {"score_map": scores}, given(sizes, "top_p", "max_regions", "strategy", "count_rule", "outlier_percent")


def label_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw a mask: specks, sponges, or long walls with a gap, which wind."""
    h, w = sizes["h"], sizes["w"]
    if family == "walls":
        mask = np.zeros((h, w), dtype=bool)
        mask[::2] = True
        mask[1::4, -1:] = True
        mask[3::4, :1] = True
        mask = mask ^ (rng.random((h, w)) < 0.05)
    else:
        mask = rng.random((h, w)) < {"sparse": 0.35, "dense": 0.65}[family]
    return {"mask": mask}, {}


def entropy_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw attention, some of it exactly zero."""
    a = attention(rng, (sizes["B"], sizes["N"]), family)
    if sizes.get("holes"):
        a[..., 1::2] = 0.0
    return {"a": a}, given(sizes, "normalize")


def texture_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw blocks of light and dark on a slope, or a picture of three such colours."""
    h, w = sizes["h"], sizes["w"]
    blocks = rng.random((-(-h // 5), -(-w // 5), *([3] if sizes.get("color") else [])))
    blocks = blocks.repeat(5, axis=0).repeat(5, axis=1)[:h, :w]
    slope = np.add.outer(np.arange(h), np.arange(w)) / (h + w)
    slope = slope[..., None] if sizes.get("color") else slope
    contrast = {"sharp": 0.8, "faint": 0.35}[family]
    return {"image": contrast * blocks + 0.15 * slope + 0.02 * rng.random(blocks.shape)}, {}


def color_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Built:
    """Draw pixels whose hues lie in the middle of their bins, and some grey ones."""
    h, w = sizes["h"], sizes["w"]
    bins = rng.integers(180, size=(h, w)) if family == "many" else rng.choice(rng.integers(180, size=3), size=(h, w))
    low, spread = 0.3 * rng.random((h, w)), 0.5 + 0.2 * rng.random((h, w))
    if sizes.get("grey"):
        spread[::2] = 0.0
    sixth = (bins + 0.5) / 30.0
    # red, green and blue are the same trapezium of the hue, a third of the circle apart
    rise = [np.clip(np.abs((sixth + turn) % 6 - 3) - 1, 0, 1) for turn in (0, 4, 2)]
    return {"image": low[..., None] + spread[..., None] * np.stack(rise, axis=-1)}, {}


@st.composite
def fuse_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes and options of a fusion."""
    L = draw(st.integers(1, 3))
    side = st.integers(1, 4)
    sizes: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {
                "S": st.integers(1, 4),
                "G": st.integers(1, 4),
                "grid": st.lists(side, min_size=2, max_size=2),
                "size": st.lists(st.integers(1, 9), min_size=2, max_size=2),
                "steps": st.sampled_from(["all", "first", "last", "equal"]),
            },
            optional={"lam": st.sampled_from([0.0, 1e-8, 0.0625]), "layers": st.lists(st.integers(0, L - 1))},
        )
    )
    return {**sizes, "L": L}


@st.composite
def image_sizes(draw: Any) -> dict[str, Any]:
    """Draw sizes of attention weights and where the image is."""
    K = draw(st.integers(1, 8))
    start = draw(st.integers(0, K - 1))
    return {
        "B": draw(st.integers(0, 2)),
        "H": draw(st.integers(1, 3)),
        "T": draw(st.integers(1, 3)),
        "K": K,
        "image_slice": [start, draw(st.integers(start + 1, K))],
    }


contrast_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "N": st.integers(0, 9)},
    optional={"lam": st.sampled_from([0.0, 1e-8, 0.0625, 1.0]), "holes": st.booleans()},
)
resize_sizes = st.fixed_dictionaries(
    {
        "h": st.integers(1, 7),
        "w": st.integers(1, 7),
        "size": st.lists(st.integers(1, 9), min_size=2, max_size=2),
    },
    optional={"c": st.integers(1, 3)},
)
mask_sizes = st.fixed_dictionaries(
    {"h": st.integers(1, 6), "w": st.integers(1, 6)},
    optional={
        "top_p": st.sampled_from([0.25, 0.4, 0.7, 1.0]),
        "max_regions": st.integers(1, 4),
        "strategy": st.sampled_from(["attention_sum", "size", "remove_small"]),
        "count_rule": st.sampled_from(["code", "paper"]),
        "outlier_percent": st.sampled_from([0.1, 20.0, 45.0]),
    },
)
label_sizes = st.fixed_dictionaries({"h": st.integers(1, 8), "w": st.integers(1, 8)})
entropy_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "N": st.integers(1, 9)},
    optional={"normalize": st.booleans(), "holes": st.booleans()},
)
texture_sizes = st.fixed_dictionaries(
    {"h": st.integers(1, 12), "w": st.integers(1, 12)}, optional={"color": st.booleans()}
)
color_sizes = st.fixed_dictionaries({"h": st.integers(1, 8), "w": st.integers(1, 8)}, optional={"grey": st.booleans()})

FUSE = Recipe("fuse_contrastive_attention", fuse_case, FAMILIES)
CONTRAST = Recipe("contrast_attention", contrast_case, FAMILIES)
IMAGE = Recipe("image_attention", image_case, FAMILIES)
RESIZE = Recipe("bilinear_resize", resize_case, FAMILIES)
MASK = Recipe("attention_mask", mask_case, SCORES)
LABEL = Recipe("connected_regions", label_case, SHAPES)
ENTROPY = Recipe("attention_entropy", entropy_case, FAMILIES)
TEXTURE = Recipe("texture_complexity", texture_case, ("sharp", "faint"))
COLOR = Recipe("color_complexity", color_case, ("many", "few"))
