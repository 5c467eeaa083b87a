"""Secondary sinks against the authors' detector, their published results, and a checkpoint run in transformers."""

from collections import Counter

import numpy as np

from refattn.interpretability.secondary_sinks import (
    attention_patterns,
    detect_sinks,
    hidden_states,
    label_sinks,
    sink_levels,
)
from refattn.interpretability.secondary_sinks_levels import Level, cluster_levels
from refattn.transformer.checkpoint import load_pretrained
from refattn.transformer.planted.sink_model import build_sink_model, planted_attention

LAYERS = {"deepseek-14b": 48, "qwen3-4b-base": 36}
LABELS = ("bos_sink", "secondary", "noise")  # the numbers of the published types


def check_detection(case):
    found = detect_sinks(
        case["hidden_states"],
        bos_positions=case["bos_positions"],
        clip=bool(case["enable_sink_clipper"]),
    )
    members = np.zeros_like(case["layer_membership"])
    for row, layers in zip(members, found.layers, strict=False):
        row[list(layers)] = True
    np.testing.assert_array_equal(found.positions, case["sink_positions"])
    np.testing.assert_array_equal(members, case["layer_membership"])
    np.testing.assert_array_equal(found.labels, case["sink_type"])
    np.testing.assert_array_equal(case["input_ids"][found.positions], case["token_id"])
    assert ("secondary" in found.labels) == case["has_secondary"]
    assert len(case["hidden_states"]) == case["num_layers"]


def check_planted(case):
    ids = case["input_ids"]
    for model, atol in ((load_pretrained(case["folder"]), 1e-9), (build_sink_model(), 5e-6)):  # stored in float32
        np.testing.assert_allclose(hidden_states(model, ids), case["hidden_states"], rtol=0, atol=atol)
    patterns = attention_patterns(model, ids)
    np.testing.assert_allclose(patterns, case["attentions"], rtol=0, atol=5e-8)
    for layer, pattern in enumerate(case["attentions"][:, 0]):
        np.testing.assert_allclose(planted_attention(ids, layer), pattern, rtol=0, atol=5e-8)


def test_the_official_detector_agrees(oracle):
    """Positions, layers and labels are those of the released code, in every case."""
    wrong = {}
    for path in (path for path in oracle("11-secondary-sinks") if path.stem.startswith("case")):
        with np.load(path) as case:
            try:
                check_detection(case)
                if "attentions" in case:
                    check_planted({**case, "folder": path.parent / "planted_model"})
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong


def published(oracle):
    for path in oracle("11-secondary-sinks"):
        if path.stem.startswith("published"):
            with np.load(path) as table:
                yield path.stem.removeprefix("published_"), dict(zip(table["columns"], table["rows"].T, strict=True))


def test_published_sinks_have_the_labels_of_their_lifetimes(oracle):
    """Every published sink has the label that its lifetime gives, and nearly all lives have no gap."""
    gaps = entries = 0
    for name, table in published(oracle):
        n_layers = next(n for model, n in LAYERS.items() if name.startswith(model))
        lifetime = table["lifetime"]
        kinds = np.array([LABELS[kind] for kind in table["type_0bos_1secondary_2noise"]])
        np.testing.assert_array_equal(label_sinks(lifetime, n_layers), kinds)
        gaps += np.sum(table["last_layer"] - table["first_layer"] + 1 != lifetime)
        entries += len(lifetime)
    assert gaps <= 2
    assert entries > 50


def levels_of(table, kind):
    chosen = table["type_0bos_1secondary_2noise"] == kind
    return np.stack([table["first_layer"], table["lifetime"]], axis=1)[chosen]


def test_published_levels_of_deepseek(oracle):
    """In 300 responses of the 14-billion-parameter model all secondary sinks are made on layer 22, at one level."""
    table = next(table for name, table in published(oracle) if name == "deepseek-14b_n10")
    assert Counter(map(tuple, levels_of(table, 0).tolist())) == {(4, 43): 900}
    secondary, noise = levels_of(table, 1), levels_of(table, 2)
    assert (len(secondary), len(noise)) == (262, 8)
    kinds, answers = table["type_0bos_1secondary_2noise"], table["sample_index"]
    assert [len(set(answers[keep])) for keep in (kinds == 0, kinds == 1, kinds > 0)] == [300, 163, 167]
    tokens = Counter(table["token_id"][kinds > 0].tolist()).most_common(3)
    assert tokens == [(220, 162), (16, 30), (11, 24)]  # a space, the digit 1, a comma
    others = np.concatenate([secondary, noise])
    assert set(others[:, 0].tolist()) == {22}
    lifetimes = Counter(others[:, 1].tolist())
    assert lifetimes == {23: 114, 22: 98, 24: 45, 3: 5, 21: 3, 4: 2, 2: 1, 18: 1, 16: 1}
    assert cluster_levels(secondary) == [Level(22, 21, 24, 260)]


def test_published_levels_of_qwen(oracle):
    """In 30 responses of the 4-billion-parameter model there are 21 secondary sinks, of one level."""
    table = next(table for name, table in published(oracle) if name.startswith("qwen"))
    assert Counter(map(tuple, levels_of(table, 0).tolist())) == {(6, 29): 30}
    assert cluster_levels(levels_of(table, 1)) == [Level(16, 18, 18, 21)]


def test_the_planted_sinks_are_those_of_the_checkpoint(oracle):
    """The levels found in the checkpoint that transformers ran are the planted ones."""
    folder = oracle("11-secondary-sinks")[0].parent / "planted_model"
    ids = [0, 5, 6, 1, 7, 8, 2, 9, 4, 3, 5, 6, 7, 8, 9, 10, 11, 4, 5, 6]
    found = detect_sinks(hidden_states(load_pretrained(folder), ids))
    assert sink_levels(found).tolist() == [[2, 29], [8, 8], [8, 14], [14, 2]]
