"""Centre each row and scale it: small, with an option, a law, bugs and an exact vector."""

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Bug, Case, Claim, Contract, Convention, Entry, Law


def centre(x, *, gain=1.0, empty="zero"):
    """Subtract the row mean and multiply by ``gain``; a row of zeros is empty."""
    y = gain * (x - np.mean(x, axis=-1, keepdims=True))
    hollow = np.all(x == 0, axis=-1, keepdims=True)
    return np.where(hollow, np.nan if empty == "nan" else 0.0, y)


def _no_mean(x, *, gain=1.0, empty="zero"):
    del empty
    return gain * x


def _no_gain(x, *, gain=1.0, empty="zero"):
    del gain
    return centre(x, empty=empty)


def _column_mean(x, *, gain=1.0, empty="zero"):
    del empty
    return gain * (x - np.mean(x, axis=-2, keepdims=True))


def _make(shape, **options):
    def maker(family, dtype, seed):
        rng = generator(seed, family, str(shape))
        return Case("centre", rounded({"x": fill(rng, shape, family)}, dtype), options, dtype, f"{shape}/{family}")

    return maker


def _drawn(dtype):
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9))
    return st.builds(
        lambda shape, gain, seed: _make(shape, **({} if gain == 1.0 else {"gain": gain}))("normal", dtype, seed),
        sizes,
        st.sampled_from([1.0, 0.5, 2.0]),
        st.integers(0, 2**16),
    )


def _shift(probe, case, rng):
    del rng
    slack = probe.slack(case)["out"]
    other = case.having(**rounded({"x": case.arrays["x"] + 1.0}, case.dtype))
    yield Claim(probe(case)["out"], probe(other)["out"], 4 * slack + 4 * probe.slack(other)["out"])


def _exact(dtype):
    return Case("centre", {"x": np.array([[1.0, 2.0, 3.0, 2.0]])}, {}, dtype), {
        "out": np.array([[-1.0, 0.0, 1.0, 0.0]])
    }


CONTRACT = Contract(
    slug="centre",
    title="Centring",
    paper="none",
    family="toy",
    entries=(
        Entry(
            name="centre",
            reference=centre,
            positional=("x",),
            scenarios={
                "plain": _make((2, 3, 5)),
                "gain": _make((2, 4, 4), gain=3.0),
                "hollow": lambda family, dtype, seed: _make((1, 2, 4))(family, dtype, seed).having(
                    x=np.zeros((1, 2, 4))
                ),
            },
            families=("normal", "large"),
            cases=_drawn,
            laws=(Law("shift", "Adding a constant to a row changes nothing.", _shift, witness="no_mean"),),
            bugs=(
                Bug("no_mean", "mean not subtracted", _no_mean, remedy="subtract it"),
                Bug("no_gain", "gain ignored", _no_gain, lambda case: "gain" in case.options, remedy="multiply"),
                Bug("column_mean", "mean of the column", _column_mean, remedy="use the row"),
            ),
            exact={"integers": _exact},
            differentiable=("x",),
            axes={"x": ("B", "S", "d")},
        ),
    ),
    conventions=(
        Convention("empty", {"zero": "0", "nan": "NaN"}, expect=lambda case, value: case.having(empty=value)),
    ),
)
