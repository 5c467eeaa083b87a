"""How complex an image is, and how far attention to it is spread.

From CARVE (2509.06461), section 3.2. Equation labels (carve-12) … (carve-14) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from refattn.primitives.arguments import as_float, require, require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["attention_entropy", "canny_edges", "color_complexity", "hue_bins", "overall_entropy", "texture_complexity"]

HUES = 180
SIGMA = 1.4
WEAK, STRONG = 0.1, 0.2
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV makes grey
# where the neighbour ahead lies, in rows and columns, for gradients at 0°, 45°, 90° and 135°
AHEAD = ((0, 1), (1, 1), (1, 0), (1, -1))


def attention_entropy(a: Any, normalize: bool = True) -> np.ndarray:
    """Return H(a) = −Σ a ln a of attention to the image tokens.

    Parameters
    ----------
    a : array_like, shape (..., N)
        Attention, non-negative.
    normalize : bool
        Divide by the sum over the image tokens first.

    Returns
    -------
    ndarray, shape (...)
        In nats, between 0 and ln N if normalised.

    Raises
    ------
    ValueError
        If an entry is negative or not finite, or a map without mass is to be normalised.

    Notes
    -----
    The paper does not say that it normalises; its values, 5.2 to 6.8 with ln 576 = 6.36 and ln 1024 = 6.93, imply it
    [inferred].

    References
    ----------
    2509.06461, section 3.2.
    """
    a = as_float("a", a)
    require(a.ndim >= 1, "a is a number, expected (..., N)")
    require_finite("a", a)
    require(np.all(a >= 0), f"a must be non-negative, its smallest entry is {np.min(a, initial=0.0)!r}")
    if normalize:
        mass = np.sum(a, axis=-1, keepdims=True)
        require(np.all(mass > 0), "a: attention has no mass to normalise")
        a = a / mass
    # eq: carve-12
    return np.asanyarray(-np.sum(a * np.log(np.where(a > 0, a, 1.0)), axis=-1))  # 0 ln 0 = 0


def overall_entropy(maps: Any, layers: Sequence[int] | None = None) -> float:
    """Return the entropy of the last step, averaged over layers.

    Parameters
    ----------
    maps : array_like, shape (S, L, N)
        Attention to the image tokens; see `refattn.interventions.carve_contrast.image_attention`.
    layers : sequence of int, optional
        Which layers; all of them if not given.

    Returns
    -------
    float
        In nats.

    Raises
    ------
    ValueError
        If the maps are not (S, L, N) with a step and a layer, a layer is out of range, and as `attention_entropy`.
    """
    maps = as_float("maps", maps, ndim=3)
    require(min(maps.shape) >= 1, f"maps has shape {maps.shape}, expected a step, a layer and a token")
    chosen = range(maps.shape[1]) if layers is None else [index(l) for l in layers]
    require(len(chosen) and all(0 <= l < maps.shape[1] for l in chosen), f"layers={layers!r} must name layers of maps")
    return float(np.mean([attention_entropy(maps[-1, l]) for l in chosen]))


def texture_complexity(image: Any) -> np.ndarray:
    """Return T_c, the share of pixels that are edges.

    Parameters
    ----------
    image : array_like, shape (h, w) or (h, w, 3)
        Grey or colour, in [0, 1].

    Returns
    -------
    ndarray, shape ()
        Between 0 and 1.

    Raises
    ------
    ValueError
        As for `canny_edges`.

    Notes
    -----
    The paper uses Canny's edges without giving thresholds; those of `canny_edges` are [our definition].

    References
    ----------
    2509.06461, section 3.2.
    """
    edges = canny_edges(image)
    # eq: carve-13
    return np.asarray(np.mean(edges), dtype=_dtype_of(image))


def canny_edges(image: Any) -> np.ndarray:
    """Find edges as Canny does: smooth, differentiate, thin, and keep what hangs on a strong edge.

    1. Grey; a Gaussian of σ = 1.4, the border repeated.
    2. Sobel's derivatives; m is the length of the gradient.
    3. Thin: keep a pixel whose m is at least that of the neighbour ahead and above that of the neighbour behind, along
       the gradient rounded to 0°, 45°, 90° or 135°.
    4. Of the pixels with m/4 ≥ 0.1 keep the 8-connected groups that hold one with m/4 ≥ 0.2.

    Parameters
    ----------
    image : array_like, shape (h, w) or (h, w, 3)
        Grey or colour, in [0, 1].

    Returns
    -------
    ndarray of bool, shape (h, w)
        True on edges.

    Raises
    ------
    ValueError
        If the image is neither (h, w) nor (h, w, 3), has no pixel, or leaves [0, 1].

    Notes
    -----
    Beyond the border m is 0. Colours become grey by the weights of ITU-R BT.601. [our definition]

    References
    ----------
    J. Canny, 'A computational approach to edge detection', IEEE PAMI 8 (1986) [recalled].
    """
    grey = _grey(image)  # (h, w)
    smooth = _smoothed(grey)  # 1
    gy, gx = _sobel(smooth), _sobel(smooth.T).T  # 2
    m = np.hypot(gx, gy)
    direction = np.round(np.arctan2(gy, gx) * (4 / np.pi)).astype(np.int64) % 4  # opposite directions are one
    ahead, behind = (np.choose(direction, [_neighbour(m, sign * y, sign * x) for y, x in AHEAD]) for sign in (1, -1))
    thin = (m >= ahead) & (m > behind)  # 3
    weak, strong = thin & (m / 4 >= WEAK), thin & (m / 4 >= STRONG)
    groups, n = ndimage.label(weak, structure=np.ones((3, 3)))  # 4
    holds_strong = np.isin(np.arange(n + 1), groups[strong])
    return np.asarray(weak & holds_strong[groups])


def color_complexity(image: Any) -> np.ndarray:
    """Return C_c, the entropy of the hues, as a share of its maximum.

    Parameters
    ----------
    image : array_like, shape (h, w, 3)
        Red, green and blue in [0, 1].

    Returns
    -------
    ndarray, shape ()
        0 for one hue, 1 for 180 equally frequent ones.

    Raises
    ------
    ValueError
        As for `hue_bins`.

    References
    ----------
    2509.06461, section 3.2.
    """
    bins = hue_bins(image)
    rho = np.bincount(bins.ravel(), minlength=HUES) / bins.size  # (180,)
    # eq: carve-14
    return np.asarray(attention_entropy(rho, normalize=False) / np.log(HUES), dtype=_dtype_of(image))


def hue_bins(image: Any) -> np.ndarray:
    """Return the hue of each pixel in steps of two degrees, as OpenCV numbers them.

    Parameters
    ----------
    image : array_like, shape (h, w, 3)
        Red, green and blue in [0, 1].

    Returns
    -------
    ndarray of int64, shape (h, w)
        0 … 179; grey pixels are 0.

    Raises
    ------
    ValueError
        If the image is not (h, w, 3), has no pixel, or leaves [0, 1].
    """
    image = _unit_image(image)
    require(image.ndim == 3, f"image has shape {image.shape}, expected (h, w, 3)")
    r, g, b = np.moveaxis(image, -1, 0)
    top = np.max(image, axis=-1)
    spread = top - np.min(image, axis=-1)
    step = np.where(spread > 0, spread, 1.0)
    sixth = np.where(top == r, ((g - b) / step) % 6, np.where(top == g, (b - r) / step + 2, (r - g) / step + 4))
    # just below 6 the remainder may round to 6
    return np.asarray(np.floor(sixth * (HUES / 6)).astype(np.int64) % HUES)


def _dtype_of(image: Any) -> Any:
    return as_float("image", image).dtype


def _unit_image(image: Any) -> Any:
    image = as_float("image", image)
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)
    require(shaped and image.size >= 1, f"image has shape {image.shape}, expected (h, w) or (h, w, 3) with a pixel")
    require(np.all((image >= 0) & (image <= 1)), "image must lie in [0, 1]")
    return image


def _grey(image: Any) -> Any:
    image = _unit_image(image)
    return image if image.ndim == 2 else image @ np.array(LUMA, dtype=image.dtype)


def _smoothed(grey: Any) -> Any:
    radius = int(4 * SIGMA + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).astype(grey.dtype)
    return _along_rows(_along_rows(grey, kernel).T, kernel).T


def _sobel(x: Any) -> Any:
    """Differentiate down the rows, smooth along them."""
    slope = _along_rows(x, np.array([-1.0, 0.0, 1.0], dtype=x.dtype))
    return _along_rows(slope.T, np.array([1.0, 2.0, 1.0], dtype=x.dtype)).T


def _along_rows(x: Any, kernel: np.ndarray) -> Any:
    """Correlate the columns of a map with a kernel; beyond the border the map repeats its last row."""
    radius = len(kernel) // 2
    wide = np.pad(x, ((radius, radius), (0, 0)), mode="edge")
    return sum(weight * wide[k : k + len(x)] for k, weight in enumerate(kernel))


def _neighbour(m: Any, dy: int, dx: int) -> Any:
    """Return, at each pixel, the value of the pixel dy rows below and dx columns to the right; 0 beyond the border."""
    h, w = m.shape
    return np.pad(m, 1)[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
