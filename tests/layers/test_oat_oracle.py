"""OAT against vectors from the authors' own modules and metrics, and from the PyPI package of MultiMatch."""

import numpy as np

from refattn.layers.oat import (
    OATWeights,
    PointerHead,
    oat_forward,
    object_tokens,
    pointer_scores,
    scanpath_loss,
    scanpath_tokens,
)
from refattn.layers.oat_appearance import AppearanceWeights, object_appearance
from refattn.layers.oat_decode import greedy_scanpath
from refattn.layers.oat_metrics import behaviour, behaviour_delta, edit_distance, scanpath_sim, sequence_score
from refattn.layers.oat_multimatch import SHELVES, multimatch, object_centres, pad_scanpath
from refattn.layers.oat_positions import gaussian_position_table, grid_coordinates, scene_coordinates, sinusoid_grid
from refattn.layers.oat_transformer import AttentionWeights, DecoderLayer, EncoderLayer, oat_decode, oat_encode

SINGLE = 1e-6  # the official code computes in float32
RESPACED = {"None": None, "True": "x", "False": "y"}


def close(left, right, tolerance=1e-11):
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def linear(case, name):
    return case[f"w:{name}.weight"].T, case[f"w:{name}.bias"]


def norm(case, name):
    return case[f"w:{name}.weight"], case[f"w:{name}.bias"]


def attention(case, name):
    w = np.split(case[f"w:{name}.in_proj_weight"].T, 3, axis=1)
    b = np.split(case[f"w:{name}.in_proj_bias"], 3)
    return AttentionWeights(w[0], b[0], w[1], b[1], w[2], b[2], *linear(case, f"{name}.out_proj"))


def feed_forward(case, at):
    return (*linear(case, f"{at}.linear1"), *linear(case, f"{at}.linear2"))


def encoder_layer(case, i):
    at = f"transformer_encoder.layers.{i}"
    attends = attention(case, f"{at}.self_attn")
    return EncoderLayer(attends, *norm(case, f"{at}.norm1"), *feed_forward(case, at), *norm(case, f"{at}.norm2"))


def decoder_layer(case, i):
    at = f"transformer_decoder.layers.{i}"
    looks_back, looks_out = (attention(case, f"{at}.{name}") for name in ("self_attn", "multihead_attn"))
    norms = [norm(case, f"{at}.norm{k}") for k in (1, 2, 3)]
    return DecoderLayer(looks_back, *norms[0], looks_out, *norms[1], *feed_forward(case, at), *norms[2])


def weights_of(case):
    heads = [
        PointerHead(*linear(case, f"cross_attentions.{h}.encode_fc"), *linear(case, f"cross_attentions.{h}.decode_fc"))
        for h in range(int(case["ca_head"]))
    ]
    readout = (case["w:readout.weight"][0], case["w:readout.bias"][0]) if "w:readout.weight" in case else (None, None)
    return OATWeights(
        tuple(encoder_layer(case, i) for i in range(int(case["n_enc"]))),
        tuple(decoder_layer(case, i) for i in range(int(case["n_dec"]))),
        tuple(heads),
        readout[0],
        None if readout[1] is None else np.array(readout[1]),
    )


def appearance_of(case):
    convolutions = [case[f"w:cnn_embedding.cnn{i}.0.{part}"] for i in (1, 2) for part in ("weight", "bias")]
    weights = AppearanceWeights(*convolutions, *linear(case, "cnn_embedding.fc"))
    return lambda crops: object_appearance(crops, weights, n_levels=int(case["spp"]))


def model(case):
    weights, look = weights_of(case), appearance_of(case)
    n_heads, d_k = int(case["n_head"]), float(case["ca_dk"])
    rows, cols, n = int(case["rows"]), int(case["cols"]), int(case["rows"] * case["cols"])
    table = case["pe_table"] if "pe_table" in case else case["pe_grid"][0]
    path, target = case["tgt_seq"].T, case["src_pos"][-1]
    src_coords = scene_coordinates(rows, cols, target)
    tgt_coords = grid_coordinates(path[:, :-1], cols, target, centre_first=True, n_rows=rows)
    close(src_coords, np.swapaxes(case["src_coord"], 0, 1), 0)
    close(tgt_coords, np.trunc(np.swapaxes(case["tgt_coord"], 0, 1)), 0)

    src, tgt = look(case["src_img"]), look(case["tgt_img"][:, :-1])
    close(src, case["src_cnn"])
    close(tgt, case["tgt_cnn"])
    tokens, steps = object_tokens(src, src_coords, table), scanpath_tokens(tgt, tgt_coords, table)
    close(tokens, np.swapaxes(case["src_emb"], 0, 1))
    close(steps, np.swapaxes(case["tgt_emb"], 0, 1))
    mask = case["tgt_padding_mask"]
    encoded = oat_encode(tokens, weights.encoder, n_heads=n_heads)
    decoded = oat_decode(steps, encoded, weights.decoder, n_heads=n_heads, pad_mask=mask)
    close(encoded, np.swapaxes(case["encoder_out"], 0, 1))
    close(decoded, np.swapaxes(case["decoder_out"], 0, 1))
    scores = pointer_scores(encoded, decoded, weights.heads, d_k=d_k)
    for h in range(len(weights.heads)):
        close(scores[..., h], np.swapaxes(case[f"pointer_head_{h}"][..., 0], 0, 1))
    options = {"n_heads": n_heads, "d_k": d_k}
    logits = oat_forward(src, src_coords, tgt, tgt_coords, table, weights, **options, tgt_pad_mask=mask)
    close(logits, np.swapaxes(case["logits"], 0, 1))
    close(scanpath_loss(logits, path[:, 1:], n + 1), case["loss"])

    start = look(case["tgt_img"][:1, :1])

    def step(so_far):
        seen = np.concatenate([start, src[:1, so_far]], axis=1) if so_far else start
        indices = np.array([[n + 2, *so_far]])
        places = grid_coordinates(indices, cols, target[:1], centre_first=True, n_rows=rows)
        return oat_forward(src[:1], src_coords[:1], seen, places, table, weights, **options)[0, -1]

    looked_at = greedy_scanpath(step, n, int(case["greedy_max_len"]))
    assert looked_at == case["greedy_scanpath"].astype(int).tolist()[: len(looked_at)]
    produced = np.count_nonzero(case["greedy_raw"] >= 0)
    assert len(looked_at) == len(case["greedy_scanpath"]) or produced == len(case["greedy_scanpath"])


def pe_sin3d(case):
    extent = case["pe"].shape
    rule, respace = str(case["function"]), RESPACED[str(case["change_x"])]
    grid = sinusoid_grid(*extent[:2], extent[3], n_flags=extent[2], rule=rule, alpha=case["alpha"], respace=respace)
    close(grid, case["pe"], SINGLE)


def pe_gauss(case):
    W = gaussian_position_table(*case["table"].shape, sigma=float(case["sigma"]))
    close(W @ W.T, case["target"], 1e-12)
    close(W @ W.T, case["cosine"], 1e-3)  # as near as ten thousand steps of Adam come


def metrics(case):
    gt, pred, target = case["gt"], case["pred"], int(case["target"])
    close(sequence_score(gt, pred), case["sequence_score"], SINGLE)
    close(sequence_score(gt, pred, gap=-0.5), case["sequence_score_gap_m05"], SINGLE)
    assert edit_distance(gt, pred) == case["levenshtein"]
    assert edit_distance(gt, pred, substitution_cost=2) == case["levenshtein_sub2"]
    human, ours = behaviour(gt, target), behaviour(pred, target)
    close(human, case["behavior_gt"])
    close(ours, case["behavior_pred"])
    close(behaviour_delta(ours, human), case["delta"])
    close(scanpath_sim(case["probs"], gt), case["sim"], SINGLE)

    places = [object_centres(path, SHELVES[str(case["layout"])]) for path in (gt, pred)]
    close(places[0], np.stack([case["gt_x"], case["gt_y"]], axis=1))
    close(places[1], np.stack([case["pred_x"], case["pred_y"]], axis=1))
    timed = multimatch(*places, case["screen"], (case["gt_dur"], case["pred_dur"]))
    close(timed, case["multimatch_pypi"])
    close(multimatch(*map(pad_scanpath, places), case["screen"]), case["multimatch_official"], SINGLE)


KINDS = {"model": model, "pe_sin3d": pe_sin3d, "pe_gauss": pe_gauss, "metrics": metrics}


def test_official_code_agrees(oracle):
    """Every vector of the official code is met: models to 1e-11, what it computes in float32 to 1e-6."""
    wrong = {}
    for path in oracle("16-object-attention-transformer"):
        with np.load(path) as case:
            try:
                KINDS[str(case["kind"])](case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
