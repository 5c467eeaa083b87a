"""The contract of RAT: its straightforward versions, and its convention."""

from types import SimpleNamespace

import numpy as np
import pytest

from refattn.conformance.backend import Backend
from refattn.conformance.contract import unpack
from refattn.conformance.trial import Bench
from refattn.contracts.rat import CONTRACT, straight
from refattn.layers.rat_decode import rat_prefill

STRAIGHT = {
    "rat_layer": straight.layer_with,
    "gated_scan": straight.scan_with,
    "chunk_attention": straight.attention_with,
    "rat_prefill": straight.prefill_with,
    "rat_step": straight.step_with,
    "rnn_layer": straight.rnn_with,
    "causal_attention_layer": straight.causal_with,
}


@pytest.mark.parametrize("entry", CONTRACT.entries, ids=lambda entry: entry.name)
@pytest.mark.parametrize("family", ["normal", "peaky", "tied"])
def test_without_a_slip_the_straightforward_version_is_the_reference(entry, family):
    """A planted bug differs from the reference by its one step alone, since nothing else differs."""
    right = STRAIGHT[entry.name]()
    for maker in entry.scenarios.values():
        case = maker(family, "float64", 0)
        actual = unpack(entry.invoke(right, case), entry.outputs)
        for name, expected in entry.expected(case).items():
            np.testing.assert_allclose(actual[name], expected, rtol=1e-10, atol=1e-11)


def careless(*arrays, **options):
    """Prefill as the reference does, but leave nonsense where no step will read."""
    step = rat_prefill(*arrays, **options)
    begin = step.length // options["chunk_size"]
    memories = [np.array(step.k_mem), np.array(step.v_mem)]
    for memory in memories:
        memory[:, :, begin:] = 99.0
    return step._replace(k_mem=memories[0], v_mem=memories[1])


@pytest.mark.parametrize(("declared", "status"), [({}, "fail"), ({"unfinished_slot": "free"}, "pass")])
def test_a_backend_may_leave_an_unfinished_slot_free_if_it_says_so(declared, status):
    """What lies in slots that are written before they are read is a convention: declared it passes, else it fails."""
    entry = CONTRACT.entry("rat_prefill")
    bench = Bench(Backend(SimpleNamespace(rat_prefill=careless, CONVENTIONS=declared), "careless"), CONTRACT)

    assert bench.try_case(entry, entry.scenarios["partial_chunk"]("normal", "float64", 0)).status == status


def test_finished_slots_are_never_free():
    """The convention excuses no error in the memory of a finished chunk."""

    def wrong(*arrays, **options):
        step = careless(*arrays, **options)
        return step._replace(k_mem=step.k_mem + 0.01)

    entry = CONTRACT.entry("rat_prefill")
    backend = Backend(SimpleNamespace(rat_prefill=wrong, CONVENTIONS={"unfinished_slot": "free"}), "wrong")
    outcome = Bench(backend, CONTRACT).try_case(entry, entry.scenarios["partial_chunk"]("normal", "float64", 0))

    assert outcome.status == "fail"
