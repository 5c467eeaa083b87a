"""Look twice: divide attention for the question by attention for no question, crop, ask again (2509.06461).

A vision-language model that is asked about a cluttered image looks at the clutter too. CARVE runs it twice on the same
image, with the question and with a general instruction; the quotient of the two attention maps cancels what draws
attention anyway. A mask from the quotient cuts out the part of the image that the model is asked about again.

The parts: `carve_contrast` (quotient and fusion), `carve_resize`, `carve_mask`, `carve_complexity` (measures),
`carve_hooks` (reading and steering a running decoder), and here the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.interventions.carve_complexity import (
    attention_entropy,
    color_complexity,
    overall_entropy,
    texture_complexity,
)
from refattn.interventions.carve_contrast import (
    DEFAULT_LAYERS,
    contrast_attention,
    contrast_objective,
    fuse_contrastive_attention,
    image_attention,
    infer_grid,
    optimal_regularization,
)
from refattn.interventions.carve_hooks import (
    ANSWER_SUFFIX,
    GENERAL_INSTRUCTION,
    CaptureHook,
    ExtractedAttention,
    RequeryHook,
    extract_attention,
    hide_image_tokens,
)
from refattn.interventions.carve_mask import (
    answer_images,
    attention_mask,
    connected_regions,
    mask_bbox,
    mask_image,
    patch_mask,
    refine_image,
)
from refattn.interventions.carve_resize import bilinear_resize
from refattn.primitives.arguments import as_float, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

__all__ = [
    "ANSWER_SUFFIX",
    "DEFAULT_LAYERS",
    "GENERAL_INSTRUCTION",
    "CaptureHook",
    "CarveResult",
    "ExtractedAttention",
    "RequeryHook",
    "answer_images",
    "attention_entropy",
    "attention_mask",
    "bilinear_resize",
    "carve",
    "color_complexity",
    "connected_regions",
    "contrast_attention",
    "contrast_objective",
    "extract_attention",
    "fuse_contrastive_attention",
    "hide_image_tokens",
    "image_attention",
    "infer_grid",
    "mask_bbox",
    "mask_image",
    "optimal_regularization",
    "overall_entropy",
    "patch_mask",
    "refine_image",
    "texture_complexity",
]


class CarveResult(NamedTuple):
    """What CARVE makes of two runs and an image.

    Attributes
    ----------
    score_map : ndarray, shape (h, w)
        The fused contrast.
    mask : ndarray of bool, shape (h, w)
        What is looked at again.
    bbox : tuple of int
        Its box (x0, y0, x1, y1).
    refined : ndarray, shape (h', w', 3)
        The masked box, magnified; `answer_images` says what to do with it.
    """

    score_map: np.ndarray
    mask: np.ndarray
    bbox: tuple[int, int, int, int]
    refined: np.ndarray


def carve(
    task_maps: Any,
    general_maps: Any,
    image: Any,
    grid: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    lam: float = 1e-8,
    steps: str = "all",
    ignore_missing: bool = False,
    top_p: float = 0.2,
    max_regions: int = 3,
    strategy: str = "attention_sum",
    count_rule: str = "code",
    outlier_percent: float = 0.1,
    magnify: bool = True,
    method: str = "bilinear",
) -> CarveResult:
    """Fuse two runs to a score map, make a mask of it, and cut the image out.

    Parameters
    ----------
    task_maps, general_maps : array_like, shapes (S, L, N) and (S', L, N)
        Attention to the image tokens under the question and under the general instruction.
    image : array_like, shape (h, w, 3)
        The image that both runs saw.
    grid : (int, int)
        Rows and columns of the image tokens.
    layers, lam, steps, ignore_missing
        See `fuse_contrastive_attention`.
    top_p, max_regions, strategy, count_rule, outlier_percent
        See `attention_mask`.
    magnify, method
        See `refine_image`.

    Returns
    -------
    CarveResult

    Raises
    ------
    ValueError
        If the image is not (h, w, 3), and as the three parts.

    Notes
    -----
    It takes two runs to get the maps and a third one to answer. The two need only the layers up to the last one that is
    fused, and the general run is the same for every question about an image. The released code does all three runs in
    full.

    References
    ----------
    2509.06461, Algorithm 1.
    """
    image = as_float("image", image)
    require(image.ndim == 3 and image.shape[-1] == 3, f"image has shape {image.shape}, expected (h, w, 3)")
    score_map = fuse_contrastive_attention(
        task_maps,
        general_maps,
        grid,
        image.shape[:2],
        layers=layers,
        lam=lam,
        steps=steps,
        ignore_missing=ignore_missing,
    )
    mask = attention_mask(
        score_map, top_p, max_regions, strategy=strategy, count_rule=count_rule, outlier_percent=outlier_percent
    )
    return CarveResult(score_map, mask, mask_bbox(mask), refine_image(image, mask, magnify, method=method))
