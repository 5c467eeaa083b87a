"""Quantising whole models: what stays, what is lost, and in which order things happen."""

import numpy as np
import pytest
from random_models import CONFIGS, model, tokens

from refattn.efficiency import quantise_matrices
from refattn.efficiency.quantise import quantise
from refattn.efficiency.quantise_matrices import METHODS
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.weights import random_transformer

MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out")


@pytest.mark.parametrize("name", CONFIGS)
def test_sixteen_bits_are_nearly_the_model(name):
    """In every family, logits move by less than a thousandth of their size when every weight gets 16 bits."""
    drawn, ids = model(name), tokens((4, 12))
    quantised = quantise(drawn, ids, bits=16, grid="minmax", block_rows=2)
    before, after = (forward(m, ids).logits for m in (drawn, quantised.model))

    assert np.abs(after - before).max() < 1e-3 * np.abs(before).max()
    assert max(loss.error for loss in quantised.losses) < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_a_matrix_of_a_block_stays(method):
    """Embeddings, norms and biases are the same; every matrix of a block takes at most 2^bits values a row."""
    drawn = model("llama")
    quantised = quantise(drawn, tokens((4, 12)), bits=2, method=method).model

    for field in ("W_E", "lnf_w", "W_U"):
        np.testing.assert_array_equal(getattr(quantised.weights, field), getattr(drawn.weights, field))
    for old, new in zip(drawn.weights.blocks, quantised.weights.blocks, strict=True):
        for field in old._fields:
            before, after = getattr(old, field), getattr(new, field)
            if field not in MATRICES:
                np.testing.assert_array_equal(after, before)
            else:
                rows = quantise_matrices.as_rows(field, after)
                assert max(len(np.unique(row.round(12))) for row in rows) <= 4
                assert np.any(after != before)


@pytest.mark.parametrize("bits", [1, 3, 12])
def test_codes_and_grids_are_the_weights(bits):
    """Scale · (code − zero point) is the weight, codes lie in 0..2^bits − 1, and they are by name for every matrix."""
    quantised = quantise(model("qwen3"), tokens((4, 12)), bits=bits)

    assert list(quantised.results) == [f"blocks.{i}.{name}" for i in range(2) for name in MATRICES]
    for name, result in quantised.results.items():
        _, layer, field = name.split(".")
        rows = quantise_matrices.as_rows(field, getattr(quantised.model.weights.blocks[int(layer)], field))
        assert result.codes.min() >= 0
        assert result.codes.max() <= 2**bits - 1
        codes = result.codes.reshape(rows.shape)
        scale, zero = (np.reshape(part, (-1, 1)) for part in result.grid)
        np.testing.assert_allclose(scale * (codes - zero), rows, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama3", "mistral", "qwen3"])
def test_drift_is_that_of_the_model_that_comes_back(name):
    """The stream that runs along is the one that the quantised model has: blocks see what those before them leave."""
    drawn, ids = model(name), tokens((4, 12))
    quantised = quantise(drawn, ids, bits=3, block_rows=2)
    for layer, drift in enumerate(quantised.drift):
        point = f"blocks.{layer}.hook_resid_post"
        before, after = (forward(m, ids, names=point).activations[point] for m in (drawn, quantised.model))
        np.testing.assert_allclose(np.sum((after - before) ** 2) / np.sum(before**2), drift, rtol=1e-9)


def correlated_model(seed):
    """Return a GPT-2 whose residual stream has a spectrum, as streams of trained models have, and text for it."""
    rng = np.random.default_rng(seed)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24, "vocab_size": 200}
    drawn = random_transformer(parse_config({"model_type": "gpt2", **sizes}), rng)
    basis = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    embedding = 8 * drawn.weights.W_E @ (np.arange(1, 33)[:, None] ** -0.75 * basis)
    weights = drawn.weights._replace(W_E=embedding, W_U=embedding.T, W_pos=0.1 * drawn.weights.W_pos)
    return drawn._replace(weights=weights), rng.integers(0, 200, (32, 24))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_bits_cost_least_with_turboboa(seed):
    """Errors of queries and keys fall from RTN to GPTQ to BoA and TurboBoA, the final drift from each to the next."""
    drawn, ids = correlated_model(seed)
    found = {method: quantise(drawn, ids, bits=2, method=method, block_rows=4) for method in METHODS}
    error = {
        method: sum(loss.error for loss in done.losses if loss.layer == 0 and loss.matrix in ("W_Q", "W_K"))
        for method, done in found.items()
    }
    drifts = [done.drift[-1] for done in found.values()]

    assert error["rtn"] > error["gptq"] > max(error["boa"], error["turboboa"])
    assert list(found) == ["rtn", "gptq", "boa", "turboboa"]
    assert drifts == sorted(drifts, reverse=True)


def test_boa_is_turboboa_with_one_row_and_nothing_else():
    """One row at a time, a fixed grid, no residual and no refinement are BoA."""
    drawn, ids = model("llama"), tokens((4, 12))
    plain = {"block_rows": 1, "alpha": 0.0, "adaptive_grid": False, "refine_sweeps": 0}
    boa = quantise(drawn, ids, bits=3, method="boa")
    turboboa = quantise(drawn, ids, bits=3, method="turboboa", **plain)

    for name, result in boa.results.items():
        np.testing.assert_array_equal(result.codes, turboboa.results[name].codes)
    np.testing.assert_allclose(boa.drift, turboboa.drift, rtol=1e-12)


def test_residual_matters_from_the_second_block_on():
    """The first block sees no error, so alpha changes nothing there; later ones it does change."""
    drawn, ids = model("gpt2"), tokens((4, 12))
    without, with_it = (quantise(drawn, ids, bits=2, alpha=alpha) for alpha in (0.0, 1.0))

    for name, result in without.results.items():
        same = np.array_equal(result.weight, with_it.results[name].weight)
        assert same == name.startswith("blocks.0"), name


@pytest.mark.parametrize("options", [{"act_order_rows": True}, {"act_order_cols": True}])
def test_orders_change_what_is_found_but_not_where_it_lies(options):
    """Re-ordered rows and columns come back to their places: the loss stays of the same size, codes differ."""
    drawn, ids = model("llama"), tokens((4, 12))
    plain = quantise(drawn, ids, bits=3, block_rows=1)
    ordered = quantise(drawn, ids, bits=3, block_rows=1, **options)

    assert any(not np.array_equal(a.codes, ordered.results[n].codes) for n, a in plain.results.items())
    assert ordered.drift[-1] < 1.5 * plain.drift[-1]


def test_dtype_stays_and_nothing_is_written_to():
    """A float32 model comes back in float32, and the one given is as it was."""
    drawn = model("neox", dtype=np.float32)
    before = drawn.weights.blocks[0].W_Q.copy()
    quantised = quantise(drawn, tokens((4, 12)), bits=4).model

    assert {getattr(block, name).dtype for block in quantised.weights.blocks for name in ("W_Q", "W_out")} == {
        np.dtype(np.float32)
    }
    np.testing.assert_array_equal(drawn.weights.blocks[0].W_Q, before)


def test_progress_hears_of_every_matrix():
    """The callback gets each name once, in the order of the results."""
    heard = []
    quantised = quantise(model("gpt2"), tokens((2, 8)), bits=4, grid="minmax", progress=heard.append)

    assert heard == list(quantised.results)
    assert [f"blocks.{loss.layer}.{loss.matrix}" for loss in quantised.losses] == heard


def test_a_model_without_blocks_and_one_token_work():
    """Nothing to quantise is no error, and a sequence of one token calibrates."""
    drawn = model("gpt2")
    empty = drawn._replace(
        config=drawn.config._replace(n_layers=0, attn_scale=(), window=()), weights=drawn.weights._replace(blocks=())
    )
    assert quantise(empty, [[1]], bits=2).losses == ()
    assert len(quantise(drawn, [[1]], bits=2).losses) == 12


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([[1, 2]], {"bits": 0}, "bits=0 must be an integer in 1..16"),
        ([[1, 2]], {"bits": 17}, "bits=17 must be an integer in 1..16"),
        ([[1, 2]], {"bits": 2.0}, "bits=2.0 must be an integer in 1..16"),
        ([[1, 2]], {"bits": 2, "method": "awq"}, "method='awq' is not one of 'rtn', 'gptq', 'boa', 'turboboa'"),
        ([[1, 2]], {"bits": 2, "grid": "best"}, "grid='best' is not one of 'minmax', 'mmse', 'hessian'"),
        ([[1, 2]], {"bits": 2, "block_rows": 0}, "block_rows=0 must be an integer of at least 1"),
        ([[1, 2]], {"bits": 2, "refine_sweeps": -1}, "refine_sweeps=-1 must be an integer of at least 0"),
        ([[1, 2]], {"bits": 2, "alpha": -0.1}, "alpha=-0.1 must be finite and >= 0"),
        ([[1, 29]], {"bits": 2}, "ids: token id 29 outside vocabulary of 29"),
        ([[]], {"bits": 2}, "expected at least one token of calibration text"),
        ([[1] * 25], {"bits": 2}, "ids has sequences of 25 tokens, beyond 24 positions"),
        ([1, 2], {"bits": 2}, "ids has 1 axes"),
    ],
)
def test_bad_input_is_named(ids, options, message):
    """Each message names the argument, its value and the rule."""
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(") if message[0] != "e" else message):
        quantise(model("gpt2"), ids, **options)


def test_a_hessian_beyond_repair_names_its_matrix(monkeypatch):
    """A moment that damping does not make positive definite is refused with the name of the matrix."""
    measured = quantise.__globals__["block_moments"]

    def broken(*arguments):
        moments, after = measured(*arguments)
        moments["W_O"] = moments["W_O"]._replace(input=moments["W_O"].input - 1e3 * np.eye(16))
        return moments, after

    monkeypatch.setitem(quantise.__globals__, "block_moments", broken)
    with pytest.raises(ValueError, match=r"^blocks\.0\.W_O: .*not positive definite"):
        quantise(model("gpt2"), tokens((2, 8)), bits=4, method="gptq", grid="minmax")
