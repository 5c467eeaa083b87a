"""Occlusion saliency, its normalisers and its deletion metric against vectors from the official modules."""

import numpy as np

from refattn.interpretability.cross_attention_explanation import (
    accumulate_saliency,
    deletion_curve,
    deletion_masks,
    kl_scores,
    mean_std_normalize,
    paired_min_max,
    target_difference,
)


def close(left, right, tolerance):
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def maps(case):
    p, q = case["orig_probs"], case["perturbed_probs"]
    scores = kl_scores(p, q) if str(case["scorer"]) == "KL" else target_difference(p, q, case["target"])
    masks = case["input_masks"]
    masks = masks if masks.ndim == 3 else masks[..., None]
    saliency = accumulate_saliency(scores, masks)
    decoder = accumulate_saliency(scores, case["decoder_masks"], causal=True)[..., None]
    close(saliency, case["input_heatmap"], 1e-14)
    close(decoder, case["decoder_heatmap"], 1e-14)
    for name, normalise in (("single_mean_std", mean_std_normalize), ("paired_min_max", paired_min_max)):
        ours = normalise(saliency, decoder)
        close(ours[0], case[f"input_{name}"], 1e-11)
        close(ours[1], case[f"decoder_{name}"], 1e-11)


def deletion(case):
    x, heatmap, step = case["features"], case["heatmap"], int(case["step"])
    insertion = str(case["metric"]) == "insertion"
    kept = deletion_masks(heatmap, step=step, insertion=insertion)
    np.testing.assert_array_equal(x * kept, case["perturbed"])
    seen = []

    def model(batch):
        seen.append(batch)
        return np.full((len(batch), 1, 2), 0.5)

    deletion_curve(model, x, heatmap, [0], step=step, insertion=insertion)
    np.testing.assert_array_equal(np.concatenate(seen), case["perturbed"])


def test_official_modules_agree(oracle):
    """Maps agree to 1e-14, normalised maps to 1e-11, and the perturbed inputs exactly."""
    wrong = {}
    for path in oracle("13-cross-attention-explanation"):
        with np.load(path) as case:
            try:
                (deletion if "features" in case else maps)(case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
