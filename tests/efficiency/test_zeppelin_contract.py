"""The conventions of the ring: what a backend may declare, and what the kit then makes of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from refattn.conformance import check
from refattn.conformance.settings import Settings
from refattn.efficiency import zeppelin_ring as ring

ENTRIES = ("ring_attention", "attention_block", "ring_attention_gradient")


def interleaved(function):
    """Return the function with query head j reading key head j mod h_kv, as in ring-attention-pytorch."""

    def otherwise(q, k, *rest, **options):
        order = np.arange(q.shape[1]).reshape(-1, k.shape[1]).T.reshape(-1)  # slots of head 0, of head 1, …
        back = np.argsort(order)
        headed = [x[:, order] if np.ndim(x) > 1 and x.shape[1] == q.shape[1] and i else x for i, x in enumerate(rest)]
        results = function(q[:, order], k, *headed, **options)
        if isinstance(results, ring.RingGradients):
            return results._replace(dq=results.dq[:, back])
        return tuple(x[:, back] for x in results)

    return otherwise


@pytest.mark.parametrize("declared", [{}, {"kv_head_order": "interleaved"}], ids=["silent", "declared"])
def test_interleaved_heads_pass_if_declared(declared):
    """A backend with the other order of heads fails where heads are shared, unless it says so."""
    functions = {name: interleaved(getattr(ring, name)) for name in ENTRIES}
    backend = SimpleNamespace(**functions, CONVENTIONS=declared)
    only = [f"zeppelin/{name}/scenario/zigzag" for name in ENTRIES]
    records = check(backend, only=only, dtypes=["float64"], settings=Settings(examples=1, shrink_seconds=0.1))

    assert {record.status for record in records} == ({"passed"} if declared else {"failed"})
    assert len(records) == len(ENTRIES)
