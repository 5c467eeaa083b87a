"""gCOG against tasks, images, labels and networks of the authors' own code."""

import numpy as np

from refattn.benchmarks import gcog
from refattn.benchmarks.gcog_blocks import AttentionWeights, BlockWeights, LinearWeights, NormWeights
from refattn.benchmarks.gcog_networks import (
    CrossAttentionWeights,
    DeepSingleStreamWeights,
    DualStreamWeights,
    PerceiverWeights,
    RuleQueryWeights,
    SingleStreamWeights,
)
from refattn.benchmarks.gcog_recurrent import RecurrentWeights

TOLERANCE = 1e-10


class Stored:
    """The weights of a case, found by the names of the released modules."""

    def __init__(self, case):
        self.case = case

    def has(self, name):
        """Whether there is such a weight."""
        return f"w.{name}" in self.case

    def __getitem__(self, name):
        return self.case[f"w.{name}"]

    def linear(self, name):
        """A linear map."""
        return LinearWeights(self[f"{name}.weight"].T, self[f"{name}.bias"])

    def chain(self, *names):
        """Several linear maps."""
        return tuple(self.linear(name) for name in names)

    def norm(self, name):
        """A layer norm."""
        return NormWeights(self[f"{name}.weight"], self[f"{name}.bias"])

    def attention(self, name):
        """An attention, of whichever kind."""
        if self.has(f"{name}.Er"):
            return AttentionWeights(*(self.linear(f"{name}.{part}") for part in ("query", "key", "value")), None)
        if self.has(f"{name}.in_proj_weight"):
            maps = np.split(self[f"{name}.in_proj_weight"], 3)
        else:
            maps = [self[f"{name}.{part}_proj_weight"] for part in "qkv"]
        biases = np.split(self[f"{name}.in_proj_bias"], 3)
        inner = (LinearWeights(w.T, b) for w, b in zip(maps, biases, strict=True))
        return AttentionWeights(*inner, self.linear(f"{name}.out_proj"))

    def block(self, name):
        """A transformer block."""
        table = f"{name}.selfattention.Er"
        return BlockWeights(
            self.linear(f"{name}.w_embed") if self.has(f"{name}.w_embed.weight") else None,
            self.attention(f"{name}.selfattention"),
            self.norm(f"{name}.layernorm0"),
            self.linear(f"{name}.mlp.0"),
            self.linear(f"{name}.mlp.2"),
            self.norm(f"{name}.layernorm1"),
            self[table] if self.has(table) else None,
        )

    def blocks(self):
        """Those of the rule and of the stimulus."""
        return self.block("rule_transformer"), self.block("stim_transformer")

    def readout(self):
        """The last map."""
        return self.linear("w_out.0")


def recurrent(w):
    """The cell of a recurrent network, whatever it is called."""
    prefix = next(key[2:].removesuffix("weight_ih_l0") for key in w.case if key.endswith("weight_ih_l0"))
    maps = [LinearWeights(w[f"{prefix}weight_{x}_l0"].T, w[f"{prefix}bias_{x}_l0"]) for x in ("ih", "hh")]
    return RecurrentWeights(*maps, w.norm("layernorm"), w.readout())


def dual(w):
    ends = w.chain("rule_fnn.0", "stim_fnn.0")
    layers = w.chain("fnn.0", "fnn.2", "fnn.4")
    return DualStreamWeights(
        *w.blocks(), *ends, w.norm("fnn_layernorm"), layers, w.norm("fnnout_layernorm"), w.readout()
    )


def single(w):
    layers = w.chain("fnn.0", "fnn.2", "fnn.4")
    return SingleStreamWeights(w.block("blocks.0"), layers, w.norm("fnnout_layernorm"), w.readout())


def deep(w):
    count = sum(w.has(f"blocks.{i}.mlp.0.weight") for i in range(20))
    blocks = tuple(w.block(f"blocks.{i}") for i in range(count))
    return DeepSingleStreamWeights(w.linear("w_embed"), blocks, w.readout())


def cross(w):
    looks = w.attention("rule_crossattention"), w.attention("stim_crossattention")
    return CrossAttentionWeights(*w.blocks(), *looks, w.norm("layernorm_crossattn"), w.readout())


def perceiver(w):
    looks = [
        part
        for s in ("rule", "stim")
        for part in (w.attention(f"{s}_crossattention"), w.norm(f"layernorm_{s}crossattn"), w.linear(f"{s}_ffn.0"))
    ]
    latent = w.attention("latent_selfattention"), w.norm("layernorm_latent"), w.linear("latent_ffn.0")
    return PerceiverWeights(*w.blocks(), *looks, *latent, w.readout())


def rule_query(w):
    layers = w.chain("mlp.0", "mlp.2")
    return RuleQueryWeights(
        *w.blocks(),
        w.attention("crossattention"),
        w.norm("layernorm_crossattn"),
        layers,
        w.norm("layernorm_mlp"),
        w.readout(),
    )


def network(w):
    """Return the function and weights of a case: which of them, its weights' names tell."""
    if w.has("rule_crossattention.out_proj.weight"):
        return (gcog.perceiver, perceiver(w)) if w.has("latent_ffn.0.weight") else (gcog.cross_attention, cross(w))
    if w.has("crossattention.out_proj.weight"):
        return gcog.rule_query_cross_attention, rule_query(w)
    if w.has("rule_fnn.0.weight"):
        return gcog.dual_stream, dual(w)
    if w.has("w_embed.weight"):
        return gcog.deep_single_stream, deep(w)
    if w.has("blocks.0.mlp.0.weight"):
        return gcog.single_stream, single(w)
    weights = recurrent(w)
    gates = weights.input.weight.shape[1] // weights.hidden.weight.shape[0]
    return (gcog.gru_classifier if gates == 3 else gcog.rnn_classifier), weights


def forward(case):
    """A network returns the stored log-probabilities and its second value."""
    function, weights = network(Stored(case))
    heads = {"n_heads": int(case["cfg_nhead"])} if "cfg_nhead" in case else {}
    result = function(case["rule_inputs"], case["stim_inputs"][..., 0], weights, **heads)
    np.testing.assert_allclose(result.log_probs, case["log_probs"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(result.hidden, case["hidden"].reshape(result.hidden.shape), rtol=0, atol=TOLERANCE)


def labelled(case):
    """The solver gives every stored label, and tokens are those of the official loader."""
    rules, grid = case["rules"], case["grid"]
    assert np.array_equal(gcog.solve_tokens(rules, grid), case["target"])
    assert np.array_equal(gcog.stimulus_tokens(grid[:6]), case["raw_stim_array"][..., 0])
    raw = case["raw_rule_array"].astype(np.int64)
    tasks = [gcog.decode_task(rule) for rule in raw]
    assert np.array_equal(gcog.pad_tasks(tasks)[0], raw)


def test_official_triples_and_networks_agree(oracle):
    """Every label is met exactly, every network to 1e-10."""
    wrong, seen = {}, 0
    for path in oracle("27-gcog"):
        with np.load(path) as stored:
            case = dict(stored)
        try:
            (labelled if "rules" in case else forward)(case)
        except (AssertionError, ValueError) as error:
            wrong[path.stem] = str(error)
        seen += 1
    assert seen
    assert not wrong


def test_our_samples_are_like_the_official_ones(oracle):
    """Objects per image and the share of ambiguous tasks are the official ones, within four standard errors."""
    parts = {
        0: ("distractor", "train"),
        2: ("distractor", "test_40"),
        4: ("productive", "test_5"),
        6: ("systematic_tree", "train"),
    }
    for path in oracle("27-gcog"):
        number = int(path.stem[-2:])
        if number not in parts:
            continue
        with np.load(path) as case:
            official = statistics(map(gcog.decode_task, case["rules"]), case["grid"])
        ours = gcog.make_split(*parts[number], 400, np.random.default_rng(number))
        found = statistics(ours.tasks, ours.grids)
        for theirs, own in zip(official, found, strict=True):
            error = np.sqrt(theirs.var() / len(theirs) + own.var() / len(own))
            assert abs(theirs.mean() - own.mean()) < 4 * error + 0.02, path.stem


def statistics(tasks, grids):
    """The number of objects of each image, and whether its task is ambiguous."""
    unclear = [gcog.is_ambiguous(task, grid) for task, grid in zip(tasks, grids, strict=True)]
    return np.count_nonzero(grids[..., 0], axis=(1, 2)), np.array(unclear, float)
