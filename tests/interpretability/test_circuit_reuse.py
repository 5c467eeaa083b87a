"""Circuits: what path patching finds in a planted model, what it must find in any, prompts, repair, and refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interpretability.circuit_reuse import path_patch, path_patch_gpt2, trace_circuit
from refattn.interpretability.circuit_reuse_detectors import (
    ablation_effects,
    accuracy,
    attention_to,
    copying_scores,
    force_attention,
    repetition_scores,
)
from refattn.interpretability.circuit_reuse_effects import (
    above,
    circuit,
    circuit_overlap,
    effect_overlap,
    force_rows,
    head_mask,
    logit_difference,
    patch_effect,
    top_fraction,
)
from refattn.interpretability.circuit_reuse_list import (
    QUERY_POSITION,
    SUBJECT_POSITION,
    list_colored_objects,
    list_ioi,
    read_prompts,
    write_list_prompts,
    write_prompts,
)
from refattn.interpretability.circuit_reuse_prompts import COLORS, colored_object_pairs, ioi_pairs
from refattn.interpretability.circuit_reuse_report import report
from refattn.transformer.ablation import ablate_heads
from refattn.transformer.config import RopeConfig, TransformerConfig
from refattn.transformer.forward import forward
from refattn.transformer.planted.list_model import COLORS as LIST_COLORS
from refattn.transformer.planted.list_model import NAMES, OBJECTS, build_list_model
from refattn.transformer.processing import process_weights
from refattn.transformer.weights import Transformer, random_transformer

MODEL, LAYOUT = build_list_model()
IOI = list_ioi(LAYOUT, np.random.default_rng(0), 4)
CO = list_colored_objects(LAYOUT, np.random.default_rng(1), 12)
FINAL = [("blocks.2.hook_resid_post", None)]
MOVERS = [(2, 0), (2, 1)]
NU = 0.3
TEMPLATES = ["Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]", "[A] and [B] met. [B] spoke to [A]"]
WORDS = (["Ann", "Bo", "Cy"], ["store", "park"], ["ring"])


def bound_prompts(n):
    """Colored Objects prompts whose clean and corrupt questions are ones that the model can answer."""
    known = CO.bound & np.isin(CO.corrupt[:, QUERY_POSITION], LAYOUT.encode(("pencil", "notebook", "cup", "plate")))
    pairs = list_colored_objects(LAYOUT, np.random.default_rng(7), 200) if known.sum() < n else CO
    known = pairs.bound & np.isin(
        pairs.corrupt[:, QUERY_POSITION], LAYOUT.encode(("pencil", "notebook", "cup", "plate"))
    )
    return tuple(table[known][:n] for table in (pairs.clean, pairs.corrupt, pairs.answers))


BOUND_CO = bound_prompts(2)


def tiny(seed=0, family="gpt2", layers=3, **changes):
    rope = family == "llama"
    config = TransformerConfig(
        family=family,
        n_layers=layers,
        d_model=16,
        n_heads=4,
        n_kv_heads=2 if rope else 4,
        d_head=4,
        d_mlp=12,
        vocab_size=13,
        n_ctx=9,
        norm="rms" if rope else "layer",
        norm_eps=1e-5,
        act="silu" if rope else "gelu_new",
        gated=rope,
        positions="rope" if rope else "learned",
        rope=RopeConfig(10000.0, 4) if rope else None,
        attn_scale=(0.5,) * layers,
        window=(None,) * layers,
    )
    return random_transformer(config._replace(**changes), np.random.default_rng(seed), scale=1.5)


def tokens(seed=0, batch=3, length=6):
    rng = np.random.default_rng(seed)
    return (*rng.integers(13, size=(2, batch, length)), np.stack([rng.permutation(13)[:2] for _ in range(batch)]))


def matrix(cells):
    effect = np.zeros((3, 3))
    for cell, value in cells.items():
        effect[cell] = value
    return effect


def close(actual, expected, atol):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


DIRECT = matrix({(2, 0): 1 / (1 - NU), (2, 1): -NU / (1 - NU)})
STAGES = {
    "ioi to the output": (IOI[:3], FINAL, "z", -1, DIRECT),
    "colours to the output": (BOUND_CO, FINAL, "z", -1, DIRECT),
    "ioi to the mover": (IOI[:3], [(2, 0)], "q", -1, matrix({(1, 0): 1 / (1 - NU)})),
    "ioi to both movers": (IOI[:3], MOVERS, "q", -1, matrix({(1, 0): 1.0})),
    "colours to the mover": (BOUND_CO, [(2, 0)], "q", -1, matrix({(1, 1): 1 / (1 - NU)})),
    "colours to both movers": (BOUND_CO, MOVERS, "q", -1, matrix({(1, 1): 1.0})),
    "ioi to inhibition": (IOI[:3], [(1, 0)], "v", SUBJECT_POSITION, matrix({(0, 0): 1.0})),
    "ioi to the keys of inhibition": (IOI[:3], [(1, 0)], "k", SUBJECT_POSITION, matrix({})),
    "colours to the content gatherer": (BOUND_CO, [(1, 1)], "v", QUERY_POSITION, matrix({(0, 0): 1.0})),
}


@pytest.mark.parametrize("name", STAGES)
def test_path_patching_lights_the_planted_cells(name):
    """Each stage of the list model shows the planted heads with the planted numbers, and no other."""
    prompts, receivers, component, position, planted = STAGES[name]
    close(path_patch(MODEL, *prompts, receivers, component=component, position=position), planted, 1e-4)


def test_the_list_model_solves_ioi():
    """It names the indirect object every time, by a margin of a (1 − ν); ablations move it as planted."""
    assert accuracy(MODEL, IOI.clean, IOI.answers) == 1.0
    close(logit_difference(forward(MODEL, IOI.clean).logits, IOI.answers), 8 * (1 - NU), 1e-4)
    left = np.full((3, 3), 5.6)
    left[0, 0], left[1, 0], left[2, 0], left[2, 1] = -5.6 / 3, 0.0, -2.4, 8.0
    close(ablation_effects(MODEL, IOI.clean, IOI.answers), left, 1e-3)


def test_the_circuits_are_recovered_and_overlap_by_three_quarters():
    """Traced from the output, the circuits of both tasks are the planted ones: overlap 3/4, Jaccard 3/5."""
    ioi, stages = trace_circuit(MODEL, *IOI[:3], source=SUBJECT_POSITION, threshold=0.05)
    colours, _ = trace_circuit(MODEL, *BOUND_CO, source=QUERY_POSITION, threshold=0.05)
    assert ioi == {(0, 0), (1, 0), (2, 0), (2, 1)}
    assert colours == {(0, 0), (1, 1), (2, 0), (2, 1)}
    assert [stage.component for stage in stages] == ["z", "q", "v"]
    assert stages[1].receivers == ((2, 0), (2, 1))
    result = circuit_overlap(ioi, colours)
    assert (result.overlap, result.jaccard) == (0.75, 0.6)
    assert (result.only_a, result.only_b) == ({(1, 0)}, {(1, 1)})


def test_the_inhibition_head_repairs_colored_objects():
    """Made to look at the wrong colours, head 1.0 takes the accuracy to one; without content gatherer it falls."""
    before = accuracy(MODEL, CO.clean, CO.answers)
    hooks = force_attention(MODEL, CO.clean, [(1, 0)], -1, CO.distractors.tolist())
    assert before < 0.8
    assert accuracy(MODEL, CO.clean, CO.answers, hooks=hooks) == 1.0
    assert accuracy(MODEL, CO.clean[CO.bound], CO.answers[CO.bound]) == 1.0
    assert accuracy(MODEL, CO.clean, CO.answers, hooks=ablate_heads([(1, 1)])) <= before
    decoys = force_attention(MODEL, CO.clean, [(1, 2)], -1, CO.distractors.tolist())
    assert accuracy(MODEL, CO.clean, CO.answers, hooks=decoys) == before


def test_the_mover_turns_away_as_more_attention_is_forced():
    """The more of head 1.0's row is forced, the less the mover looks at the wrong colours."""
    looked = []
    for weight in np.linspace(0, 1, 5):
        hooks = force_attention(MODEL, CO.clean, [(1, 0)], -1, CO.distractors.tolist(), weight=float(weight))
        looked.append(attention_to(MODEL, CO.clean, CO.distractors, hooks=hooks)[2, 0])
    assert np.all(np.diff(looked) <= 1e-9)
    assert looked[0] > 0.2
    assert looked[-1] < 1e-3


def test_detectors_name_the_planted_heads():
    """0.0 finds duplicates, 2.0 copies and 2.1 does the opposite, 1.0 looks at S2; no other head does."""
    words = np.array(LAYOUT.encode((*NAMES, *LIST_COLORS)))
    duplicate = repetition_scores(MODEL, 0, LAYOUT.encode(OBJECTS), "duplicate")
    assert duplicate[0, 0] > 0.99
    assert np.sum(duplicate > 0.5) == 1
    for lowest, head in ((False, (2, 0)), (True, (2, 1))):
        scores = copying_scores(MODEL, words, lowest=lowest)
        assert scores[head] == 1.0
        assert np.sum(scores) == 1.0
    seen = attention_to(MODEL, IOI.clean, np.full((4, 1), SUBJECT_POSITION))
    assert seen[1, 0] > 0.99
    assert repetition_scores(MODEL, 0, LAYOUT.encode(OBJECTS), "previous").shape == (3, 3)


def test_effects_of_the_last_layer_sum_to_one():
    """Into the final residual, through norms that are transparent and no MLP, LD is linear in the last layer's z."""
    for prompts in (IOI[:3], BOUND_CO):
        effect = path_patch(MODEL, *prompts, FINAL)
        assert np.sum(effect[2]) == pytest.approx(1.0, abs=1e-6)


def test_a_head_without_output_has_no_effect():
    """A sender whose W_O is zero tells nobody anything."""
    model = tiny()
    block = model.weights.blocks[1]
    mute = np.array(block.W_O)
    mute[2] = 0.0
    blocks = (model.weights.blocks[0], block._replace(W_O=mute), model.weights.blocks[2])
    effect = path_patch(Transformer(model.config, model.weights._replace(blocks=blocks)), *tokens(), FINAL)
    assert effect[1, 2] == 0.0
    assert np.count_nonzero(effect) == 11


@pytest.mark.parametrize("truncate", [True, False])
def test_senders_behind_the_receivers_have_no_effect(truncate):
    """Heads of the receiver's layer and of later ones are not heard, whether they are asked or not."""
    effect = path_patch(tiny(), *tokens(), [(1, 0), (1, 3)], component="q", truncate=truncate)
    assert np.all(effect[0] != 0)
    close(effect[1:], 0.0, 1e-12)


def test_the_order_of_prompts_does_not_matter():
    """Permuting the batch leaves every effect as it is."""
    clean, corrupt, answers = tokens(batch=5)
    order = np.random.default_rng(3).permutation(5)
    effect = path_patch(tiny(), clean, corrupt, answers, FINAL)
    close(path_patch(tiny(), clean[order], corrupt[order], answers[order], FINAL), effect, 1e-11)


def test_effects_do_not_depend_on_the_scale_of_logits():
    """Logits three times as large give the same effects."""
    model = tiny()
    louder = Transformer(model.config, model.weights._replace(W_U=3 * model.weights.W_U))
    close(path_patch(louder, *tokens(), FINAL), path_patch(model, *tokens(), FINAL), 1e-11)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_processed_weights_give_the_same_effects(component):
    """Folding norms and centring weights changes no effect on a receiving head."""
    receivers = [(2, 1), (2, 2)]
    effect = path_patch(tiny(), *tokens(), receivers, component=component, position=2)
    processed = path_patch(process_weights(tiny()), *tokens(), receivers, component=component, position=2)
    close(processed, effect, 1e-9)
    close(path_patch(process_weights(tiny()), *tokens(), FINAL), path_patch(tiny(), *tokens(), FINAL), 1e-9)


def test_frozen_mlps_carry_nothing():
    """With MLPs frozen, heads before the last layer reach the final residual at p by their own output alone."""
    model, (clean, corrupt, answers) = tiny(), tokens()
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    z, z_corrupt = (
        forward(model, ids, names=[*names, "blocks.2.hook_resid_post"]).activations for ids in (clean, corrupt)
    )
    before, other = (logit_difference(forward(model, ids).logits, answers) for ids in (clean, corrupt))
    effect = path_patch(model, clean, corrupt, answers, FINAL, freeze_mlps=True)
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        change = (z_corrupt[names[layer]] - z[names[layer]])[:, -1, head] @ model.weights.blocks[layer].W_O[head]
        final = z["blocks.2.hook_resid_post"].copy()
        final[:, -1] += change
        told = forward(model, clean, hooks={"blocks.2.hook_resid_post": lambda _value, _name, x=final: x})
        close(effect[layer, head], patch_effect(logit_difference(told.logits, answers), before, other), 1e-12)
    assert np.max(np.abs(effect - path_patch(model, clean, corrupt, answers, FINAL))) > 1e-3


def test_one_layer_one_prompt_and_negative_positions_work():
    """A model of one layer is patched on one prompt, and p = −2 is p = T − 2."""
    model, (clean, corrupt, answers) = tiny(layers=1), tokens(batch=1)
    effect = path_patch(model, clean, corrupt, answers, [("blocks.0.hook_resid_post", None)])
    assert effect.shape == (1, 4)
    assert np.sum(effect) != 0
    ends = [path_patch(tiny(), *tokens(), [(2, 0)], component="v", position=p) for p in (-2, 4)]
    np.testing.assert_array_equal(*ends)


def test_shared_keys_and_values_are_patched_once():
    """With grouped keys, receivers of one group are one receiver; RMS norms, rotation and gates make no difference."""
    model = tiny(family="llama")
    one, both = (
        path_patch(model, *tokens(), heads, component="v", position=3) for heads in ([(2, 0)], [(2, 0), (2, 1)])
    )
    close(one[:2], both[:2], 1e-12)
    queries = path_patch(model, *tokens(), [(2, 0)], component="q")
    assert np.any(queries[:2] != path_patch(model, *tokens(), [(2, 1)], component="q")[:2])


def test_named_points_and_heads_listen_together():
    """Naming the queries of a layer is naming all its heads."""
    heads = [(2, h) for h in range(4)]
    named = path_patch(tiny(), *tokens(), [("blocks.2.attn.hook_q", None)])
    close(named[:2], path_patch(tiny(), *tokens(), heads, component="q")[:2], 1e-12)
    mixed = path_patch(tiny(), *tokens(), [("blocks.2.attn.hook_q", None), (2, 1)], component="q")
    close(mixed[:2], named[:2], 1e-12)


def test_dtype_and_inputs_stay():
    """A float32 model gives float32 effects; read-only prompts are fine and stay as they are."""
    clean, corrupt, answers = tokens()
    for array in (clean, corrupt, answers):
        array.flags.writeable = False
    config = tiny().config
    narrow = random_transformer(config, np.random.default_rng(0), dtype=np.float32)
    assert path_patch(narrow, clean, corrupt, answers, FINAL).dtype == np.float32


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_overlap_is_symmetric_and_bounds_jaccard(left, right):
    """The measures lie in [0, 1], do not depend on the order, and are one for equal circuits alone."""
    a, b = (above(np.random.default_rng(seed).standard_normal((3, 4)), 1.0) for seed in (left, right))
    one, other = circuit_overlap(a, b), circuit_overlap(b, a)
    assert (one.overlap, one.jaccard) == (other.overlap, other.jaccard)
    assert 0 <= one.jaccard <= one.overlap <= 1
    assert (one.overlap == 1) == (a == b)
    assert one.shared | one.only_a == a


def test_sets_and_masks_agree():
    """`circuit_overlap` of frozensets is `effect_overlap` of the effects that they come from."""
    effects = np.random.default_rng(0).standard_normal((2, 5, 6))
    for options in ({"fraction": 0.2}, {"threshold": 0.7}):
        masks = effect_overlap(*effects, **options)
        pick = (lambda e: top_fraction(e, 0.2)) if "fraction" in options else (lambda e: above(e, 0.7))
        sets = circuit_overlap(pick(effects[0]), pick(effects[1]))
        assert (masks.overlap, masks.jaccard) == (sets.overlap, sets.jaccard)
        assert {tuple(map(int, at)) for at in np.argwhere(masks.shared)} == sets.shared


def test_the_fraction_is_rounded_up_and_ties_go_to_earlier_heads():
    """2 % of 384 heads are 8, of nine heads one; 7 % of 100 are seven; equal heads come in order."""
    assert head_mask(np.random.default_rng(0).standard_normal((24, 16))).sum() == 8
    assert top_fraction(np.ones((3, 3))) == {(0, 0)}
    assert head_mask(np.ones((10, 10)), fraction=0.07).sum() == 7
    assert top_fraction(np.array([[1.0, -2.0], [2.0, 0.5]]), 0.5) == {(0, 1), (1, 0)}
    assert circuit([{(0, 1)}, {(0, 1), (2, 0)}, set()]) == {(0, 1), (2, 0)}
    assert circuit_overlap(set(), set()).overlap == 1.0


def test_forced_rows_sum_to_one_and_others_stay():
    """A forced row is a distribution over its targets; all other rows and heads are bit-equal."""
    ids, seen = IOI.clean, []
    targets = [[3], [3, 5], [0, 1, 2], [7]]
    rows = np.array([-1, 15, 9, 7])
    hooks = force_attention(MODEL, ids, [(1, 0), (2, 2)], rows, targets)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    plain, forced = forward(MODEL, ids, names=names), forward(MODEL, ids, hooks=hooks, names=names)
    seen = forced.activations["blocks.1.attn.hook_pattern"]
    for b, told in enumerate(targets):
        row = seen[b, 0, rows[b]]
        close(row.sum(), 1.0, 1e-12)
        close(row[told], 1 / len(told), 1e-12)
    np.testing.assert_array_equal(forced.activations[names[0]], plain.activations[names[0]])
    np.testing.assert_array_equal(seen[:, 1:], plain.activations[names[1]][:, 1:])
    np.testing.assert_array_equal(seen[0, 0, :-1], plain.activations[names[1]][0, 0, :-1])


def test_colored_objects_differ_in_the_question_alone():
    """Clean and corrupt text differ in one word, answers are colours of their objects, the two lists share nothing."""
    for pair in colored_object_pairs(np.random.default_rng(0), 60):
        clean, corrupt = pair.clean.split(), pair.corrupt.split()
        assert len(clean) == len(corrupt)
        assert [i for i, words in enumerate(zip(clean, corrupt, strict=True)) if len(set(words)) > 1] == [
            len(clean) - 2
        ]
        meta = pair.meta
        assert clean[-2] == f"{meta['objects'][meta['query']]}?"
        assert pair.answer == f" {meta['colors'][meta['query']].title()}"
        assert pair.wrong == f" {meta['colors'][meta['corrupt_query']].title()}"
        example = pair.clean.partition("\nQ:")[0].lower()
        assert not any(word in example.replace(",", " ").split() for word in (*meta["objects"], *meta["colors"]))
        assert pair.clean.endswith("\nA:")
        assert ("an orange" in pair.clean) == ("orange" in pair.clean.lower().partition("?")[0] + pair.clean[100:])


def test_two_items_have_no_comma():
    """Lists of two are "x and y", without a comma; lower-case labels on demand."""
    (pair,) = colored_object_pairs(np.random.default_rng(1), 1, 2, uppercase=False)
    first, second = pair.clean.split("\nQ:")
    assert first.count(",") == second.count(",") == 1
    assert " and a" in first
    assert pair.answer.strip() in COLORS
    assert len(colored_object_pairs(np.random.default_rng(1), 3, 4)) == 3


def test_ioi_prompts_exchange_the_second_subject():
    """The corrupt prompt says the other name last; each prompt ends before the answer, and slots are filled."""
    for pair in ioi_pairs(np.random.default_rng(0), 40, TEMPLATES, *WORDS):
        io, subject = pair.answer.strip(), pair.wrong.strip()
        assert io != subject
        assert (pair.clean.count(subject), pair.clean.count(io)) == (2, 1)
        assert (pair.corrupt.count(subject), pair.corrupt.count(io)) == (1, 2)
        assert pair.clean.endswith(" to")
        assert "[" not in pair.clean + pair.corrupt
        place = pair.clean.rindex(subject)
        assert pair.clean[:place] + io + pair.clean[place + len(subject) :] == pair.corrupt


def test_prompts_of_the_list_model_have_their_words_in_place():
    """S2, the colours and the object asked for are where the constants say."""
    assert IOI.clean.shape == (4, 16)
    assert CO.clean.shape == (12, 61)
    np.testing.assert_array_equal(IOI.clean[:, SUBJECT_POSITION], IOI.answers[:, 1])
    np.testing.assert_array_equal(np.nonzero(IOI.clean != IOI.corrupt)[1], [SUBJECT_POSITION] * 4)
    np.testing.assert_array_equal(np.nonzero(CO.clean != CO.corrupt)[1], [QUERY_POSITION] * 12)
    assert not np.any(np.take_along_axis(CO.clean, CO.distractors, axis=1) == CO.answers[:, :1])
    np.testing.assert_array_equal(CO.clean[:, 32], LAYOUT.encode("q") * 12)


def test_files_give_back_what_was_written(tmp_path):
    """Prompts written to a file are read as they were; the list model's own prompts can be written."""
    write_prompts(tmp_path / "prompts.json", IOI.clean, IOI.corrupt, IOI.answers)
    for read, written in zip(read_prompts(tmp_path / "prompts.json")[:3], IOI[:3], strict=True):
        np.testing.assert_array_equal(read, written)
    for task, length in (("ioi", 16), ("colored_objects", 61)):
        write_list_prompts(tmp_path / "drawn.json", LAYOUT, task, 3, np.random.default_rng(0))
        read = read_prompts(tmp_path / "drawn.json")
        assert read.clean.shape == (3, length)
        assert read.source == {"ioi": SUBJECT_POSITION, "colored_objects": QUERY_POSITION}[task]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no 'clean'"),
        ('{"clean": [[1]], "corrupt": [[1]]}', "no 'answers'"),
        ('{"clean": [[1], [1, 2]], "corrupt": [[1]], "answers": [[1, 2]]}', "rows of one length"),
        ('{"clean": 3, "corrupt": [[1]], "answers": [[1, 2]]}', "rows of one length"),
        ('{"clean": [["a"]], "corrupt": [[1]], "answers": [[1, 2]]}', "clean has dtype"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    """What is not three tables of ids is refused with its name."""
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "prompts.json")
    with pytest.raises(ValueError, match="no file"):
        read_prompts(tmp_path / "nothing.json")


def test_the_report_lists_and_draws_the_circuit(tmp_path):
    """Rows name stage, receivers, head and effect; the picture has one matrix a stage."""
    from matplotlib.figure import Figure

    found = report(MODEL, *IOI[:3], source=SUBJECT_POSITION, threshold=0.05)
    assert [(row["stage"], row["head"]) for row in found.rows] == [(1, "2.0"), (1, "2.1"), (2, "1.0"), (3, "0.0")]
    assert found.rows[2]["receivers"] == "q of 2.0, 2.1 at token -1"
    assert found.rows[0]["effect"] == pytest.approx(1 / (1 - NU), abs=1e-4)
    figure = Figure(layout="constrained")
    found.draw(figure)
    figure.savefig(tmp_path / "circuit.png")
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupt": np.zeros((3, 5), int)}, r"corrupt has shape \(3, 5\)"),
        ({"answers": np.zeros((3, 3), int)}, r"answers has shape \(3, 3\)"),
        ({"answers": np.full((3, 2), 13)}, "answers holds 13"),
        ({"receivers": [(3, 0)], "component": "q"}, r"receiver \(3, 0\)"),
        ({"receivers": [(0, 4)], "component": "q"}, r"receiver \(0, 4\)"),
        ({"receivers": [("blocks.9.hook_resid_post", None)]}, "no hook point named"),
        ({"receivers": [("blocks.0.attn.hook_pattern", None)]}, "cannot receive"),
        ({"receivers": []}, "receivers is empty"),
        ({"component": "x"}, "component='x'"),
        ({"receivers": [(1, 0)]}, "component='z'"),
        ({"position": 6}, "position=6"),
        ({"position": -7}, "position=-7"),
    ],
)
def test_path_patching_refuses_bad_input(changes, message):
    """Every rule of the arguments has its message."""
    clean, corrupt, answers = tokens()
    call = {"clean": clean, "corrupt": corrupt, "answers": answers, "receivers": FINAL, **changes}
    arrays = [call.pop(name) for name in ("clean", "corrupt", "answers", "receivers")]
    with pytest.raises(ValueError, match=message):
        path_patch(tiny(), *arrays, **call)


def test_a_corruption_that_changes_nothing_is_refused():
    """Equal prompts leave nothing to divide by."""
    clean, _, answers = tokens()
    with pytest.raises(ValueError, match="clean and corrupt logit differences are equal"):
        path_patch(tiny(), clean, clean, answers, FINAL)
    with pytest.raises(ValueError, match="clean and corrupt logit differences are equal"):
        patch_effect(1.0, 2.0, 2.0)


def test_weights_of_another_family_are_refused():
    """Weights without learned positions are no GPT-2."""
    weights = tiny(family="llama").weights
    with pytest.raises((ValueError, TypeError)):
        path_patch_gpt2(weights, *tokens(), receivers=FINAL)


REFUSED = {
    "targets is empty": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 0)], -1, [[]]),
    "target 5 lies beyond the query at 4": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 0)], 4, [[5]]),
    r"head \(1, 3\)": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 3)], -1, [[5]]),
    "rows=.* must lie in the 16 queries": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 0)], 16, [[5]]),
    r"targets \[-2\]": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 0)], -1, [[-2]]),
    "name a key twice": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 0)], -1, [[3, 3]]),
    "weight=1.5": lambda: force_attention(MODEL, IOI.clean[:1], [(1, 0)], -1, [[3]], weight=1.5),
    "targets has 1 rows": lambda: force_attention(MODEL, IOI.clean[:2], [(1, 0)], -1, [[3]]),
    "rows has shape": lambda: force_rows(np.ones((2, 1, 3, 3)), [0], [[0], [0]], heads=[0]),
    "head=1": lambda: force_rows(np.ones((1, 1, 3, 3)), [0], [[0]], heads=[1]),
    "fraction=0.0": lambda: head_mask(np.ones((2, 2)), fraction=0.0),
    "threshold=-1.0": lambda: above(np.ones((2, 2)), -1.0),
    "no head to choose": lambda: head_mask(np.ones((2, 0))),
    r"effect has shape \(3,\)": lambda: head_mask(np.ones(3)),
    "must be finite": lambda: head_mask(np.full((2, 2), np.nan)),
    "effect_b has shape": lambda: effect_overlap(np.ones((2, 2)), np.ones((2, 3))),
    "reduce='sum'": lambda: logit_difference(np.ones((1, 2, 3)), [[0, 1]], reduce="sum"),
    "position=2": lambda: logit_difference(np.ones((1, 2, 3)), [[0, 1]], position=2),
    "no prompt to average": lambda: logit_difference(np.ones((0, 2, 3)), np.zeros((0, 2), int)),
    "n_items=9 needs 18 colours": lambda: colored_object_pairs(np.random.default_rng(0), 1, 9),
    "n_items=1": lambda: colored_object_pairs(np.random.default_rng(0), 1, 1),
    "needs 6 objects": lambda: colored_object_pairs(np.random.default_rng(0), 1, objects=["cup", "pen"]),
    "must end in": lambda: ioi_pairs(np.random.default_rng(0), 1, ["[A] and [B] met"], *WORDS),
    "1 different names": lambda: ioi_pairs(np.random.default_rng(0), 1, TEMPLATES, ["Ann"], *WORDS[1:]),
    "places is empty": lambda: ioi_pairs(np.random.default_rng(0), 1, TEMPLATES, ["Ann", "Bo"], [], ["ring"]),
    "task='greater'": lambda: write_list_prompts("never.json", LAYOUT, "greater", 1, np.random.default_rng(0)),
    "tokens is empty": lambda: copying_scores(MODEL, np.zeros(0, int)),
    "must all be different": lambda: repetition_scores(MODEL, 0, [3, 3], "duplicate"),
    "keys must lie": lambda: attention_to(MODEL, IOI.clean, np.full((4, 1), 16)),
    "answers has shape": lambda: accuracy(MODEL, IOI.clean, np.zeros(3, int)),
    "ids has no prompt": lambda: accuracy(MODEL, np.zeros((0, 4), int), np.zeros(0, int)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message):
    """What cannot be meant is refused with its reason."""
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
