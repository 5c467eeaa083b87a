"""FIT against vectors from the authors' own classes."""

import re

import numpy as np

from refattn.layers import fit_denoiser
from refattn.layers.fit import FITWeights, StemWeights, fit_encode
from refattn.layers.fit_autoregressive import FITARWeights, fit_autoregressive
from refattn.layers.fit_blocks import CrossWeights, LayerWeights, MHAWeights, MLPWeights, NormWeights
from refattn.layers.fit_decode import fit_ar_init_cache, fit_ar_step
from refattn.layers.fit_denoiser import (
    FITDenoiserWeights,
    LinearWeights,
    PreviousWeights,
    TimeWeights,
    fit_denoise,
    time_code,
    time_embedding,
)
from refattn.layers.fit_layout import group_causal_mask, parse_fit_layers
from refattn.layers.fit_positions import position_table, sincos_1d, sincos_2d
from refattn.layers.fit_stages import StageWeights
from refattn.primitives.masks import causal_mask, chunked_mask

STEPS = {"x_network": "local", "l2x_cross_attn": "read", "l2c_cross_attn": "condition"} | {
    "l_network": "global",
    "x2l_cross_attn": "write",
}


class Model:
    """The weights of one case, found by the names that Keras gave them."""

    def __init__(self, case):
        self.params = {name.split("/", 2)[2]: case[name] for name in case if name.startswith("param/")}


def has(model, prefix):
    return any(name.startswith(f"{prefix}/") for name in model.params)


def norm(model, prefix):
    return NormWeights(model.params[f"{prefix}/gamma"], model.params[f"{prefix}/beta"])


def linear(model, prefix):
    return model.params[f"{prefix}/kernel"], model.params[f"{prefix}/bias"]


def attention(model, prefix):
    parts = ("query", "key", "value", "attention_output")
    return MHAWeights(*(array for part in parts for array in linear(model, f"{prefix}/{part}")))


def mlp(model, prefix):
    maps = (linear(model, f"{prefix}/ffn/dense{i}") for i in (1, 2))
    return MLPWeights(norm(model, f"{prefix}/ffn/ln"), *(array for pair in maps for array in pair))


def layer(model, prefix):
    found = [f"{prefix}/{name}" for name in ("mha", "self_mha") if has(model, f"{prefix}/{name}")]
    parts = (norm(model, f"{found[0]}/ln"), attention(model, found[0])) if found else (None, None)
    return LayerWeights(*parts, mlp(model, f"{prefix}/mlp"))


def layers(model, prefix, count):
    kinds = ("transformer_decoder_layer", "transformer_encoder")
    return tuple(
        layer(model, f"{prefix}/{kind}{suffix(j)}")
        for j in range(count)
        for kind in kinds
        if has(model, f"{prefix}/{kind}{suffix(j)}")
    )


def cross(model, prefix):
    if not has(model, prefix):
        return None
    at = f"{prefix}/cross_mha"
    source = norm(model, f"{at}/enc_ln") if has(model, f"{at}/enc_ln") else None
    after = mlp(model, f"{prefix}/mlp") if has(model, f"{prefix}/mlp") else None
    return CrossWeights(norm(model, f"{at}/ln"), source, attention(model, at), after)


def stages(model, spec):
    return tuple(
        StageWeights(
            layers(model, f"x_network{suffix(i)}", local),
            cross(model, f"l2x_cross_attn{suffix(i)}"),
            cross(model, f"l2c_cross_attn{suffix(i)}"),
            layers(model, f"l_network{suffix(i)}", wide),
            cross(model, f"x2l_cross_attn{suffix(i)}"),
        )
        for i, (local, wide) in enumerate(parse_fit_layers(spec))
    )


def stem(model, name):
    return StemWeights(*linear(model, name), norm(model, f"{name}_ln")) if has(model, name) else None


def table(model, name):
    return next(array for key, array in model.params.items() if key.startswith(f"{name}/"))


def suffix(i):
    return f"_{i}" if i else ""


def close(left, right, atol=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


def sizes(case):
    return int(case["num_groups"]), int(case["latents_per_group"])


def mask_of(case):
    return str(case["mask"]) if "mask" in case else "none"


def check_trace(case, trace, atol=1e-12):
    """Every step that the official code recorded is met by ours."""
    recorded = [name for name in case if name.startswith("step/")]
    assert recorded
    for name in recorded:
        kind, i = re.fullmatch(r"step/\d+_(\w+?)_(\d+)", name).groups()
        ours = trace[f"{STEPS[kind]}_{i}"]
        assert ours.size == case[name].size
        close(ours.reshape(case[name].shape), case[name], atol)


def encoder(case):
    t, m = sizes(case)
    model = Model(case)
    dtype = case["X"].dtype
    latents = case["latent_pos_emb"]
    weights = FITWeights(
        stem(model, "stem"),
        case["x_pos_emb"],
        latents.reshape(t, m, -1),
        stages(model, str(case["layers"])),
        norm(model, "x_output_ln"),
        norm(model, "l_output_ln"),
        stem(model, "stem_y"),
    )
    atol = 1e-12 if dtype == np.float64 else 5e-6
    extra = case.get("group_tokens")
    tokens, found, trace = fit_encode(case["X"], weights, extra=extra, mask=mask_of(case), return_trace=True)
    assert tokens.dtype == dtype
    close(tokens, case["Y"], atol)
    close(found, case["Y_latents"], atol)
    check_trace(case, trace, atol)
    if "x_pos_encoding" in case and str(case["x_pos_encoding"]) != "learned":
        n, dx = case["x_pos_emb"].shape
        close(position_table(str(case["x_pos_encoding"]), n, 1, dx), case["x_pos_emb"], 5e-5)
        close(position_table(str(case["latent_pos_encoding"]), t, m, latents.shape[-1]), latents, 5e-5)


def autoregressive(case):
    t, m = sizes(case)
    model = Model(case)
    shared = "token_embedding" in model.params
    weights = FITARWeights(
        model.params["token_embedding" if shared else "inp_token_embedding"],
        table(model, "x_pos_emb"),
        table(model, "latent_pos_emb").reshape(t, m, -1),
        stages(model, str(case["layers"])),
        norm(model, "x_output_ln"),
        None if shared else model.params["outp_token_embedding"],
        model.params.get("outp_bias"),
    )
    logits, trace = fit_autoregressive(case["X"], weights, return_trace=True)
    close(logits, case["Y"])
    check_trace(case, trace)

    cache = fit_ar_init_cache(len(logits), weights)
    for p, ids in enumerate(case["X"].reshape(len(logits), -1).T):
        step, cache = fit_ar_step(ids, cache, weights)
        close(step, case["Y"].reshape(len(logits), -1, logits.shape[-1])[:, p])


def denoiser(case):
    t, m = sizes(case)
    model = Model(case)
    previous = None
    if has(model, "latent_prev_proj"):
        previous = PreviousWeights(mlp(model, "latent_prev_proj"), norm(model, "latent_prev_ln"))
    weights = FITDenoiserWeights(
        stem(model, "stem"),
        table(model, "x_pos_emb"),
        table(model, "latent_pos_emb").reshape(t, m, -1),
        TimeWeights(*linear(model, "time_emb/dense0"), *linear(model, "time_emb/dense1")),
        LinearWeights(*linear(model, "cond_proj")) if has(model, "cond_proj") else None,
        previous,
        stages(model, str(case["layers"])),
        norm(model, "x_output_ln"),
        LinearWeights(*linear(model, "x_output_linear")),
    )
    x, cond, prev = case["X"], case["cond"], case["latents_prev"]
    code = case["time_code_normalized"]
    close(time_code(case["time"], code.shape[-1]), code, 1e-4)  # float32 angles of up to 1000 in the official code
    token = time_embedding(code, weights.time)
    close(token, case["time_embedding"])
    tokens = cond if weights.condition is None else cond @ weights.condition.w + weights.condition.b
    conditions = np.concatenate([token[:, None], tokens], axis=1)
    out, latents, trace = fit_denoiser._denoise(x, conditions, weights, prev, mask_of(case), return_trace=True)
    close(out, case["Y"])
    close(latents, case["Y_latents"])
    check_trace(case, trace)
    close(fit_denoise(x, case["time"], cond, weights, latents_prev=prev, mask=mask_of(case))[0], case["Y"], 1e-3)


def masks_and_codes(case):
    np.testing.assert_array_equal(~causal_mask(6, 6), case["ar_mask_6"])
    np.testing.assert_array_equal(~(causal_mask(8, 8) & chunked_mask(8, 8, 4)), case["local_ar_mask_8_4"])
    np.testing.assert_array_equal(~group_causal_mask(4, 2), case["chunk_ar_mask_8_2"])
    close(sincos_1d(7, 8)[None], case["code_1d_7_8"], 5e-5)
    close(sincos_1d(7, 8, max_position=None)[None], case["code_1d_7_8_raw"], 1e-6)
    close(sincos_1d(7, 8, max_position=6.2831852)[None], case["code_1d_7_8_2pi"], 1e-6)
    close(sincos_2d(3, 4, 16)[None], case["code_2d_3_4_16"], 5e-5)
    for spec, parsed in zip(case["layer_specs"], case["layer_parsed"], strict=True):
        assert str(list(parse_fit_layers(str(spec)))) == str(parsed)


KINDS = {
    "fit_encoder": encoder,
    "fit_autoregressive": autoregressive,
    "fit_denoiser": denoiser,
    "masks_and_codes": masks_and_codes,
}


def test_official_classes_agree(oracle):
    """Every vector of the official code is met: outputs, insides of every step, and token-by-token decoding."""
    wrong = {}
    for path in oracle("19-fit"):
        with np.load(path) as archive:
            case = dict(archive)
        try:
            KINDS[str(case["kind"])](case)
        except AssertionError as error:
            wrong[path.stem] = str(error)
    assert not wrong
