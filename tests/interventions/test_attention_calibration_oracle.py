"""ACT against vectors from the authors' code: the two calibration functions, and a whole layer around them."""

import numpy as np

from refattn.interventions.attention_calibration import act
from refattn.interventions.attention_calibration_heads import ACTHook
from refattn.primitives.masks import causal_mask
from refattn.primitives.softmax import softmax

TOLERANCE = 1e-14
N_LAYERS = 32  # of the model whose layers the vectors imitate


def close(actual, wanted, tolerance=TOLERANCE):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance)


def settings(case):
    return {"beta": float(case["beta"]), "threshold": float(case["threshold"])}


def calibrate(case):
    close(act(case["weights"], heads=case["heads"].tolist(), **settings(case)), case["calibrated"])
    untouched = np.setdiff1d(np.arange(case["weights"].shape[1]), case["heads"])
    np.testing.assert_array_equal(case["calibrated"][:, untouched], case["weights"][:, untouched])


def turned(x, cos, sin):
    swapped = np.concatenate([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], axis=-1)
    return x * cos + swapped * sin


def layer(case):
    x, heads, groups = case["x"], int(case["num_heads"]), int(case["num_kv_heads"])
    (B, T, _), width = x.shape, case["w_q"].shape[1] // heads

    def split(w, n):
        return np.swapaxes((x @ w).reshape(B, T, n, width), 1, 2)  # (B, n, T, dh)

    q, k = (turned(split(w, n), case["cos"], case["sin"]) for w, n in ((case["w_q"], heads), (case["w_k"], groups)))
    k, v = (np.repeat(y, heads // groups, axis=1) for y in (k, split(case["w_v"], groups)))
    plain = softmax(q @ np.swapaxes(k, -1, -2) / width**0.5, where=causal_mask(T, T))  # (B, H, T, T)
    hook = ACTHook({int(case["layer"]): case["heads"].tolist()}, **settings(case))
    hook.begin(N_LAYERS)
    used = hook.on_weights(int(case["layer"]), plain)

    def out(weights):
        return np.swapaxes(weights @ v, 1, 2).reshape(B, T, -1) @ case["w_o"]

    close(plain, case["weights_plain"])
    close(out(plain), case["output_plain"], 1e-13)
    close(used, case["weights_used"])
    close(out(used), case["output"], 1e-13)
    close(used, case["weights_used_f32softmax"], 1e-6)
    close(out(used), case["output_f32softmax"], 1e-6)


def test_official_code_agrees(oracle):
    """Calibrated weights meet the official ones to 1e-14, outputs of a layer to 1e-13."""
    wrong = {}
    for path in oracle("26-attention-calibration"):
        with np.load(path) as case:
            try:
                {"calibrate": calibrate, "layer": layer}[str(case["kind"])](case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
