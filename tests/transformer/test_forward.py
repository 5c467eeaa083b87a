"""What holds for a forward pass of every family."""

import numpy as np
import pytest
from random_models import CONFIGS, model, tokens

from refattn.primitives.softmax import softmax
from refattn.transformer.block import repeat_kv
from refattn.transformer.forward import forward, log_softmax
from refattn.transformer.hooks import hook_names, merge_hooks
from refattn.transformer.intervention import Intervention

EVERY = pytest.mark.parametrize("name", CONFIGS)


def close(left, right, atol=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


@EVERY
def test_later_tokens_change_nothing_before_them(name):
    """Logits up to t are the same whatever follows."""
    ids, other = tokens((2, 9)), tokens((2, 9), seed=2)
    other[:, :6] = ids[:, :6]

    np.testing.assert_array_equal(forward(model(name), ids).logits[:, :6], forward(model(name), other).logits[:, :6])


@EVERY
@pytest.mark.parametrize("split", [1, 4, 8])
def test_a_cache_split_anywhere_equals_one_pass(name, split):
    """Two calls, the second with the cache of the first, give the logits and the cache of one."""
    ids, whole = tokens((2, 9)), forward(model(name), tokens((2, 9)))
    first = forward(model(name), ids[:, :split])
    second = forward(model(name), ids[:, split:], cache=first.kv_cache)

    close(np.concatenate([first.logits, second.logits], axis=1), whole.logits)
    for (k, v), (k_whole, v_whole) in zip(second.kv_cache, whole.kv_cache, strict=True):
        close(k, k_whole)
        close(v, v_whole)


@EVERY
def test_hooks_that_return_nothing_change_nothing(name):
    """With a hook returning None at every point the logits are bit for bit those without."""
    seen = []
    points = [n for n in hook_names(model(name).config) if not n.endswith("hook_result")]
    hooks = {point: lambda _value, at: seen.append(at) for point in points}
    ids = tokens((2, 5))

    np.testing.assert_array_equal(forward(model(name), ids, hooks=hooks).logits, forward(model(name), ids).logits)
    assert seen == points


@EVERY
def test_the_residual_stream_is_a_ledger(name):
    """The stream after the last block is the embedding plus all that attention and MLPs wrote."""
    drawn = model(name)
    a = forward(drawn, tokens((2, 6)), names=hook_names(drawn.config)).activations
    total = a["hook_embed"] + a.get("hook_pos_embed", 0.0)
    for layer, block in enumerate(drawn.weights.blocks):
        at = f"blocks.{layer}."
        close(a[f"{at}attn.hook_result"].sum(axis=2) + block.b_O, a[f"{at}hook_attn_out"])
        total = total + a[f"{at}hook_attn_out"] + a[f"{at}hook_mlp_out"]
        close(total, a[f"{at}hook_resid_post"])


@EVERY
def test_patterns_are_distributions_over_what_is_visible(name):
    """Every row sums to 1, is 0 for later keys and outside the window, and is the softmax of its scores."""
    drawn = model(name)
    a = forward(drawn, tokens((2, 8)), names="all").activations
    t = np.arange(8)
    for layer, window in enumerate(drawn.config.window):
        pattern = a[f"blocks.{layer}.attn.hook_pattern"]
        hidden = (t > t[:, None]) | (t <= t[:, None] - (window or 99))
        close(pattern.sum(axis=-1), 1.0)
        assert np.all(pattern[:, :, hidden] == 0)
        assert np.all(pattern[:, :, ~hidden] > 0)
        close(pattern, softmax(a[f"blocks.{layer}.attn.hook_attn_scores"]), atol=0)


@EVERY
def test_rotary_scores_depend_on_distances_only(name):
    """Where positions rotate, shifting all of them changes no score; rotation keeps the length of q and k."""
    drawn = model(name)
    if drawn.config.rope is None:
        pytest.skip("learned positions")
    ids = tokens((1, 6))
    here, there = (forward(drawn, ids, positions=np.arange(6) + by, names="all") for by in (0, 9))

    close(here.logits, there.logits, atol=1e-10)
    for kind in "qk":
        before, after = (here.activations[f"blocks.0.attn.hook_{r}{kind}"] for r in ("", "rot_"))
        close(np.linalg.norm(before, axis=-1), np.linalg.norm(after, axis=-1))


@EVERY
def test_batch_rows_do_not_know_each_other(name):
    """Permuting the batch permutes the logits, and an empty batch gives empty logits."""
    ids = tokens((3, 5))

    close(forward(model(name), ids[[2, 0, 1]]).logits, forward(model(name), ids).logits[[2, 0, 1]])
    assert forward(model(name), ids[:0]).logits.shape == (0, 5, 29)


def test_grouped_heads_equal_repeated_weights():
    """A model whose key and value heads are shared equals the one that stores them once a query head."""
    drawn = model("llama")
    config = drawn.config._replace(n_kv_heads=4)
    blocks = tuple(
        block._replace(**{name: np.repeat(getattr(block, name), 2, axis=0) for name in ("W_K", "b_K", "W_V", "b_V")})
        for block in drawn.weights.blocks
    )
    repeated = drawn._replace(config=config, weights=drawn.weights._replace(blocks=blocks))

    close(forward(repeated, tokens((2, 6))).logits, forward(drawn, tokens((2, 6))).logits)
    np.testing.assert_array_equal(repeat_kv(np.arange(2).reshape(1, 2, 1, 1), 4).ravel(), [0, 0, 1, 1])


def test_a_window_as_long_as_the_text_hides_nothing():
    """A window of T keys equals full attention; a window of one leaves each token to itself."""
    drawn = model("mistral")
    wide, full, one = (drawn._replace(config=drawn.config._replace(window=(w, w))) for w in (7, None, 1))

    close(forward(wide, tokens((1, 7))).logits, forward(full, tokens((1, 7))).logits)
    pattern = forward(one, tokens((1, 7)), names="all").activations["blocks.1.attn.hook_pattern"]
    close(pattern, np.broadcast_to(np.eye(7), pattern.shape), atol=0)


@pytest.mark.parametrize(("read", "write"), [("V", "O"), ("Q", "K")])
def test_heads_have_no_preferred_basis(read, write):
    """An invertible change of basis within a head, undone by its partner, leaves GPT-2's logits as they are."""
    drawn = model("gpt2")
    turn = np.random.default_rng(3).standard_normal((4, 4)) + 3 * np.eye(4)
    back = np.linalg.inv(turn) if write == "O" else np.linalg.inv(turn).T

    def turned(block):
        changes = {f"W_{read}": getattr(block, f"W_{read}") @ turn, f"b_{read}": getattr(block, f"b_{read}") @ turn}
        if write == "O":
            return block._replace(**changes, W_O=back @ block.W_O)
        return block._replace(**changes, W_K=block.W_K @ back, b_K=block.b_K @ back)

    changed = drawn._replace(weights=drawn.weights._replace(blocks=tuple(map(turned, drawn.weights.blocks))))
    close(forward(changed, tokens((2, 6))).logits, forward(drawn, tokens((2, 6))).logits, atol=1e-9)


def test_a_model_that_writes_nothing_reads_its_embeddings():
    """With zero output weights, or without blocks, the logits are those of the normed embeddings."""
    drawn = model("gpt2")
    silent = tuple(
        b._replace(W_O=0 * b.W_O, b_O=0 * b.b_O, W_out=0 * b.W_out, b_out=0 * b.b_out) for b in drawn.weights.blocks
    )
    config = drawn.config._replace(n_layers=0, attn_scale=(), window=())
    quiet = drawn._replace(weights=drawn.weights._replace(blocks=silent))
    empty = drawn._replace(config=config, weights=drawn.weights._replace(blocks=()))

    close(forward(quiet, tokens((1, 5))).logits, forward(empty, tokens((1, 5))).logits)


def test_hidden_padding_changes_nothing_but_itself():
    """Rows padded on the left, with mask and positions, have the logits of the rows alone."""
    drawn, ids = model("llama"), tokens((1, 5))
    padded = np.concatenate([np.zeros((1, 3), int), ids], axis=1)
    mask = np.arange(8)[None] >= 3
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    result = forward(drawn, padded, key_mask=mask, positions=positions, names="all")

    close(result.logits[:, 3:], forward(drawn, ids).logits)
    assert np.all(result.activations["blocks.0.attn.hook_pattern"][:, :, :3] == 0)


def test_hooks_at_one_point_run_in_order_on_read_only_values():
    """Each hook sees the result of the one before it and cannot write to it; the last value is kept."""
    name = "blocks.0.attn.hook_z"

    def add_one(value, _name):
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0
        return value + 1

    hooks = merge_hooks({name: add_one}, {name: [lambda value, _: 3 * value, lambda *_: None]})
    drawn, ids = model("llama"), tokens((1, 4))
    changed = forward(drawn, ids, hooks=hooks, names=[name]).activations[name]

    close(changed, 3 * (forward(drawn, ids, names=name).activations[name] + 1))


class Recorder(Intervention):
    """Attends by itself in layer 1, and adds to the logits in layer 0."""

    def __init__(self):
        self.begun = 0

    def begin(self, n_layers):
        """Count the passes."""
        self.begun += n_layers

    def on_logits(self, layer, logits, mask):
        """Raise all visible logits of layer 0."""
        assert mask.dtype == bool
        return np.where(mask, logits + 5.0 * (layer == 0), logits)

    def attend(self, layer, q, k, v, mask, scale):
        """Do in layer 1 what the pass would have done."""
        assert not q.flags.writeable
        if layer != 1:
            return None
        k, v = (repeat_kv(x, q.shape[1]) for x in (k, v))
        return softmax(scale * q @ np.swapaxes(k, -1, -2), where=np.broadcast_to(mask, (*q.shape[:3], k.shape[2]))) @ v


def test_interventions_act_at_every_attention_call():
    """A constant added to all logits of a row changes nothing, nor does attention computed by the intervention."""
    drawn, ids, recorder = model("mistral"), tokens((2, 6)), Recorder()

    close(forward(drawn, ids, interventions=(recorder,)).logits, forward(drawn, ids).logits)
    assert recorder.begun == 2


def test_a_pattern_that_was_never_computed_cannot_be_asked_for():
    """Where an intervention attends, asking for the pattern of that layer is refused."""
    with pytest.raises(ValueError, match="an intervention attends there"):
        forward(model("mistral"), tokens((1, 4)), interventions=(Recorder(),), names="all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [[0.5, 1.0]]}, "ids has dtype float64, expected integers"),
        ({"ids": [[0, 99]]}, "token id 99 outside vocabulary of 29"),
        ({"ids": [[0, -1]]}, "token id -1 outside vocabulary of 29"),
        ({"ids": [0, 1]}, "ids has 1 axes"),
        ({"ids": np.zeros((1, 25), int)}, "sequence of 25 exceeds 24 learned positions"),
        ({"positions": [[0, 1, 2]]}, "positions has shape"),
        ({"positions": [[-1, 0]]}, "positions=-1 must not be negative"),
        ({"key_mask": np.ones((1, 3), bool)}, "key_mask has shape"),
        ({"key_mask": np.ones((1, 2), int)}, "key_mask has dtype int64, expected bool"),
        ({"cache": [(np.zeros((1, 4, 2, 4)),) * 2]}, "cache has 1 layers, expected 2"),
        ({"hooks": {"blocks.7.hook_resid_pre": lambda *_: None}}, "no hook point named 'blocks.7.hook_resid_pre'"),
        ({"names": ["blocks.0.attn.hook_rot_q"]}, "no hook point named"),
        ({"hooks": {"hook_embed": lambda value, _: value[:, :1]}}, "returned shape"),
    ],
)
def test_bad_input_is_named(arguments, message):
    """What cannot be run is refused with the argument, its value and the rule."""
    with pytest.raises(ValueError, match=message):
        forward(model("gpt2"), arguments.pop("ids", np.zeros((1, 2), int)), **arguments)


def test_log_softmax_is_normalised():
    """Its exponentials sum to 1."""
    close(np.exp(log_softmax(np.random.default_rng(0).standard_normal((3, 7)))).sum(axis=-1), 1.0)
