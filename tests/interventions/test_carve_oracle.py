"""CARVE against vectors from the authors' own functions."""

import numpy as np

from refattn.interventions.carve import (
    attention_mask,
    bilinear_resize,
    fuse_contrastive_attention,
    image_attention,
    infer_grid,
    mask_bbox,
    mask_image,
    refine_image,
)


def single_precision(ours, theirs):
    """The released code resizes and extracts in float32."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * max(1e-30, np.abs(theirs).max()))


def fuse(case):
    grid = tuple(case["grid"])
    fused = fuse_contrastive_attention(
        case["query_maps"],
        case["general_maps"],
        grid,
        (int(case["image_height"]), int(case["image_width"])),
        layers=case["layers"],
        lam=float(case["lam"]),
        steps={"mean": "equal"}.get(str(case["step_mode"]), str(case["step_mode"])),
        ignore_missing=True,
    )
    if infer_grid(int(np.prod(grid)), grid) is None:  # a single token: the code gives up, we do not
        assert not case["fused"].any()
        np.testing.assert_allclose(fused, fused[0, 0], rtol=1e-14)
    else:
        single_precision(fused, case["fused"])


def reshape(case):
    attention, fallback = case["attention"], tuple(case["fallback"])
    grid = infer_grid(len(attention), None if fallback == (-1, -1) else fallback)
    assert (grid is not None) == case["ok"]
    if grid is not None:
        assert grid == tuple(case["grid"])
        np.testing.assert_array_equal(attention[: grid[0] * grid[1]].reshape(grid), case["reshaped"])


def resize(case):
    single_precision(
        bilinear_resize(case["image"].astype(float), (int(case["out_height"]), int(case["out_width"]))), case["resized"]
    )


def mask(case):
    ours = attention_mask(
        case["attention"],
        float(case["top_p"]),
        int(case["keep_regions"]),
        strategy=str(case["strategy"]),
        outlier_percent=float(case["outlier_percent"]),
    )
    np.testing.assert_array_equal(ours, case["mask"].astype(bool))
    np.testing.assert_array_equal(mask_image(case["image"], ours), case["masked_image"])
    assert mask_bbox(ours) == tuple(case["bbox"])
    assert refine_image(case["image"], ours).shape == case["refined"].shape


def extract(case):
    weights = case["last_query_weights"]  # (S, L, H, T)
    start, stop = int(case["image_start"]), int(case["image_stop"])
    assert len(weights) == case["n_steps"]
    single_precision(image_attention(weights[..., None, :], (start, stop)), case["maps"])


KINDS = {"fuse": fuse, "reshape": reshape, "resize": resize, "mask": mask, "extract": extract}


def test_the_released_code_agrees(oracle):
    """Masks, boxes and grids are those of the official code exactly; maps to the float32 in which it computes."""
    wrong = {}
    for path in oracle("23-carve"):
        with np.load(path) as case:
            try:
                KINDS[str(case["kind"])](case)
            except (AssertionError, ValueError) as error:
                wrong[path.stem] = f"{case['kind']}: {error}"
    assert not wrong
