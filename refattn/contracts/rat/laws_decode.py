"""What holds when state is carried across calls: split equals whole, and nothing but the open slots is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import fill, rounded
from refattn.conformance.contract import Case, Claim, Law
from refattn.layers.rat_decode import RATCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Outputs, Probe

__all__ = ["PATHS", "PREFILL_LAWS", "STEP_LAWS", "steps"]

PATHS = 4.0  # two ways to one row, each with its own rounding of all that came before
_LAYER_OPTIONS = ("num_heads", "num_groups", "chunk_size", "rope_base", "norm_eps")


def _options(case: Case) -> dict[str, Any]:
    return {name: case.options[name] for name in _LAYER_OPTIONS if name in case.options}


def _cache(result: Outputs, length: int) -> RATCache:
    return RATCache(result["k_mem"], result["v_mem"], result["k_last"], result["v_last"], length)


def steps(probe: Probe, case: Case, cache: RATCache, x: np.ndarray) -> np.ndarray:
    """Step through ``x`` from a cache.

    Parameters
    ----------
    probe : Probe
        Runs `rat_step`.
    case : Case
        Gives weights, options and dtype.
    cache : RATCache
        Where to begin.
    x : ndarray, shape (B, N, D)
        The tokens.

    Returns
    -------
    ndarray, shape (B, N, D)
    """
    rows = []
    for t in range(x.shape[1]):
        arrays = {"x_t": x[:, t : t + 1], "weights": case.arrays["weights"], "cache": cache}
        step = Case("rat_step", arrays, _options(case), case.dtype, case.label)
        result = probe(step)
        rows.append(result["out"])
        cache = _cache(result, cache.length + 1)
    return np.concatenate(rows, axis=1)


def _prefill_then_steps(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x, chunk_size = case.arrays["x"], case.options["chunk_size"]
    prompt = case.options.get("prompt_len", x.shape[1])
    more = rounded(fill(rng, (len(x), -prompt % chunk_size + chunk_size, x.shape[2])), case.dtype)
    whole = np.concatenate([x[:, :prompt], more], axis=1)  # whole chunks, one more than the prompt begins
    layer = Case("rat_layer", {"x": whole, "weights": case.arrays["weights"]}, _options(case), case.dtype, case.label)
    filled = case.having(max_len=max(x.shape[1], whole.shape[1]))
    begin = probe(filled)
    expected, slack = probe(layer)["out"], PATHS * probe.slack(layer)["out"]

    yield Claim(begin["out"][:, :prompt], expected[:, :prompt], slack[:, :prompt], "prompt")
    rows = steps(probe, case, _cache(begin, prompt), more)
    yield Claim(rows, expected[:, prompt:], slack[:, prompt:], "steps")


PREFILL_LAWS = (
    Law(
        "prefill_then_steps",
        "A prompt of any length, then step after step across the next chunk's start, gives the layer's rows.",
        _prefill_then_steps,
        lambda case: bool(case.arrays["x"].size) and case.arrays["x"].shape[1] <= 20,
        needs=("rat_step", "rat_layer"),
        witness="state_of_padding_kept",
    ),
)


def _free_slots_do_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cache = case.arrays["cache"]
    free = np.arange(cache.k_mem.shape[2])[:, None] >= int(cache.length) // case.options["chunk_size"]
    noise = [rounded(rng.standard_normal(cache.k_mem.shape), case.dtype) for _ in range(2)]
    k_mem, v_mem = (np.where(free, n, m) for n, m in zip(noise, (cache.k_mem, cache.v_mem), strict=True))
    changed = case.having(cache=cache._replace(k_mem=k_mem, v_mem=v_mem))
    slack = probe.slack(case)["out"] + probe.slack(changed)["out"]
    yield Claim(probe(case)["out"], probe(changed)["out"], slack)


def _new_chunk_forgets(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cache = case.arrays["cache"]
    begins = cache._replace(length=int(cache.length) // case.options["chunk_size"] * case.options["chunk_size"])
    noise = [rounded(rng.standard_normal(cache.k_last.shape), case.dtype) for _ in range(2)]
    case = case.having(cache=begins)
    changed = case.having(cache=begins._replace(k_last=noise[0], v_last=noise[1]))
    slack = probe.slack(case)["out"] + probe.slack(changed)["out"]
    yield Claim(probe(case)["out"], probe(changed)["out"], slack)


def _slot_holds_the_state(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    cache, result = case.arrays["cache"], probe(case)
    chunk = int(cache.length) // case.options["chunk_size"]
    slot = result["v_mem"][:, :, chunk].reshape(result["v_last"].shape)
    yield Claim(slot, result["v_last"], 0.0, "own slot")
    others = np.arange(cache.k_mem.shape[2]) != chunk
    for name in ("k_mem", "v_mem"):
        yield Claim(result[name][:, :, others], getattr(cache, name)[:, :, others], 0.0, f"other slots of {name}")


def _any(case: Case) -> bool:
    return bool(case.arrays["x_t"].size)


STEP_LAWS = (
    Law(
        "free_slots_do_not_matter",
        "What lies in the slot that is about to be written, and in those behind it, changes no output.",
        _free_slots_do_not_matter,
        _any,
        witness="free_slots_read",
    ),
    Law(
        "new_chunk_forgets",
        "At the first token of a chunk the running state before it does not matter.",
        _new_chunk_forgets,
        _any,
        witness="step_carries_on",
    ),
    Law(
        "slot_holds_the_state",
        "After a step the chunk's slot holds the running value, and all other slots are as they were.",
        _slot_holds_the_state,
        _any,
        witness="slot_written_when_over",
    ),
)
