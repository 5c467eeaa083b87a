"""How inputs of the FIT entries are drawn: small models with every option, and weights that spread the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill
from refattn.conformance.contract import map_arrays
from refattn.layers.fit_decode import fit_ar_init_cache, fit_ar_step
from refattn.layers.fit_init import FITConfig, init_fit, init_fit_autoregressive, init_fit_denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = [
    "AUTOREGRESSIVE",
    "CROSS",
    "DENOISER",
    "ENCODER",
    "EXTEND",
    "FAMILIES",
    "MASK",
    "SHIFT",
    "STEP",
    "cross_sizes",
    "denoiser_sizes",
    "encoder_sizes",
    "extend_sizes",
    "ids_sizes",
    "mask_sizes",
    "shift_sizes",
    "step_sizes",
]

FAMILIES = ("normal",)
Drawn = tuple[dict[str, Any], dict[str, Any]]

_BASE: dict[str, Any] = {
    "layers": "(1)1(1)",
    "B": 1,
    "t": 3,
    "n": 3,
    "m": 2,
    "dx": 4,
    "dl": 6,
    "hx": 2,
    "hl": 2,
    "r": 2,
}


def _config(sizes: Mapping[str, Any]) -> FITConfig:
    s = _BASE | dict(sizes)
    return FITConfig(s["layers"], s["t"] * s["n"], s["t"], s["m"], s["dx"], s["dl"], s["hx"], s["hl"], s["r"])


def _shaken(rng: np.random.Generator, weights: Any, family: str) -> Any:
    """Move every fresh weight, biases and norms too, so that none of them can be left out unseen."""
    size = 0.5 if family == "peaky" else 0.3
    return map_arrays(lambda w: w + size * rng.standard_normal(w.shape), weights)


def _given(sizes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: sizes[name] for name in names if name in sizes}


def encoder_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw features, weights, and perhaps extra tokens."""
    s = _BASE | dict(sizes)
    extra = sizes.get("extra")
    weights = init_fit(_config(sizes), rng, in_dim=5, extra_dim=None if extra is None else 3)
    arrays = {"x": fill(rng, (s["B"], s["t"], s["n"], 5), family), "weights": _shaken(rng, weights, family)}
    if extra is not None:
        arrays["extra"] = fill(rng, (s["B"], s["t"], extra, 3), family)
    return arrays, _given(sizes, "mask")


def ids_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw token ids and weights."""
    s = _BASE | dict(sizes)
    settings = {"shared": not sizes.get("untied", False), "bias": not sizes.get("untied", False)}
    weights = init_fit_autoregressive(_config(sizes), rng, vocabulary=5, **settings)
    ids = rng.integers(0, 5, (s["B"], s["t"], s["n"]))
    return {"ids": ids, "weights": _shaken(rng, weights, family)}, {}


def step_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a token, and the cache of those before it."""
    drawn, _ = ids_case(rng, family, sizes)
    batch = len(drawn["ids"])
    _, t, n = drawn["ids"].shape
    past = drawn["ids"].reshape(batch, t * n)[:, : sizes["past"]]
    cache = fit_ar_init_cache(batch, drawn["weights"])
    for ids in past.T:
        _, cache = fit_ar_step(ids, cache, drawn["weights"])
    return {"ids": rng.integers(0, 5, batch), "cache": cache, "weights": drawn["weights"]}, {}


def extend_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw the tokens that follow, and the cache of those before them."""
    arrays, _ = step_case(rng, family, sizes)
    return arrays | {"ids": rng.integers(0, 5, (len(arrays["ids"]), sizes["new"]))}, {}


def denoiser_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw noisy data, times near 0 unless ``late``, conditions, and perhaps latents of the step before."""
    s = {**_BASE, "dl": 12, "cond": (2, 3), **sizes}
    names = ("cond_proj", "self_cond", "x_self_attention", "xattn_with_mlp", "xattn_enc_ln")
    widths = {"in_dim": 3, "out_dim": 2, "cond_dim": s["cond"][-1]}
    weights = init_fit_denoiser(_config(s), rng, **widths, **_given(sizes, *names))
    times = rng.random(s["B"]) if sizes.get("late", False) else rng.integers(0, 8, s["B"]) / 1024.0
    arrays = {
        "x": fill(rng, (s["B"], s["t"], s["n"], 3), family),
        "time": times,
        "cond": fill(rng, (s["B"], *s["cond"]), family),
        "weights": _shaken(rng, weights, family),
    }
    if sizes.get("again", False):
        arrays["latents_prev"] = fill(rng, (s["B"], s["t"], s["m"], s["dl"]), family)
    return arrays, _given(sizes, "mask")


def cross_case(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a stream, a source, and a cross layer between them."""
    settings = {"xattn_with_mlp": sizes.get("mlp", False), "xattn_enc_ln": sizes.get("normed", True)}
    model = {"layers": "(0)1(0)", "dx": sizes["d"], "dl": 8, "hx": sizes["h"], "hl": sizes["h"]}
    weights = init_fit_denoiser(_config(model), rng, in_dim=1, out_dim=1, cond_dim=1, **settings)
    arrays = {
        "a": fill(rng, (*sizes.get("lead", ()), sizes["N"], sizes["d"]), family),
        "e": fill(rng, (*sizes.get("lead", ()), sizes["M"], 8), family),
        "weights": _shaken(rng, weights.stages[0].write, family),
    }
    return arrays, {}


def mask_case(_rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Give the sizes of a mask."""
    return {}, {"num_groups": sizes["t"], "latents_per_group": sizes["m"]}


def shift_case(rng: np.random.Generator, _family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw targets."""
    return {"ids": rng.integers(1, 9, (sizes["B"], sizes["t"], sizes["n"]))}, _given(sizes, "start")


_SPECS = ("(1)1(1)", "(1)", "(0)1(0)", "(1)1", "(0)0")
_groups: dict[str, Any] = {
    "B": st.integers(0, 2),
    "t": st.integers(1, 3),
    "n": st.integers(1, 2),
    "m": st.integers(1, 2),
}
_widths: dict[str, Any] = {"dx": st.sampled_from([2, 4]), "dl": st.sampled_from([2, 6]), "hx": st.integers(1, 2)}

encoder_sizes = st.fixed_dictionaries(
    {"layers": st.sampled_from(_SPECS), **_groups, **_widths},
    optional={"mask": st.sampled_from(["none", "causal"]), "extra": st.integers(0, 2)},
)
ids_sizes = st.fixed_dictionaries(
    {"layers": st.sampled_from(_SPECS), **_groups, **_widths}, optional={"untied": st.booleans()}
)
step_sizes = ids_sizes.flatmap(
    lambda sizes: st.integers(0, sizes["t"] * sizes["n"] - 1).map(lambda past: sizes | {"past": past})
)
extend_sizes = step_sizes.flatmap(
    lambda sizes: st.integers(1, sizes["t"] * sizes["n"] - sizes["past"]).map(lambda new: sizes | {"new": new})
)
denoiser_sizes = st.fixed_dictionaries(
    {"layers": st.sampled_from(_SPECS), **_groups, "cond": st.tuples(st.integers(0, 2), st.just(12))},
    optional={
        "mask": st.sampled_from(["none", "causal"]),
        "cond_proj": st.booleans(),
        "x_self_attention": st.booleans(),
        "xattn_with_mlp": st.booleans(),
        "xattn_enc_ln": st.booleans(),
    },
)
cross_sizes = st.fixed_dictionaries(
    {"N": st.integers(0, 4), "M": st.integers(1, 4), "d": st.sampled_from([2, 4]), "h": st.integers(1, 2)},
    optional={"lead": st.sampled_from([(), (2,), (1, 3)]), "mlp": st.booleans(), "normed": st.booleans()},
)
mask_sizes = st.fixed_dictionaries({"t": st.integers(0, 5), "m": st.integers(0, 4)})
shift_sizes = st.fixed_dictionaries(
    {"B": st.integers(0, 2), "t": st.integers(1, 4), "n": st.integers(1, 4)}, optional={"start": st.integers(0, 9)}
)

ENCODER = Recipe("fit_encode", encoder_case, FAMILIES)
AUTOREGRESSIVE = Recipe("fit_autoregressive", ids_case, ("normal",))
STEP = Recipe("fit_ar_step", step_case, ("normal",))
EXTEND = Recipe("fit_ar_extend", extend_case, ("normal",))
DENOISER = Recipe("fit_denoise", denoiser_case, ("normal",))
CROSS = Recipe("fit_cross_attention", cross_case, ("normal", "peaky", "cancelling", "large"))
MASK = Recipe("group_causal_mask", mask_case, ("none",))
SHIFT = Recipe("shift_right", shift_case, ("none",))
