"""A machine that errs at random: Monte Carlo arithmetic, and which decisions its errors may turn.

Parker, 'Monte Carlo Arithmetic' (1997) [recalled]: multiply every result by ``1 + u xi``, ``xi`` uniform on [-1, 1],
and let a few runs show which rounding errors a computation amplifies and which it forgets. What errs, and by how much,
each time with its own ``xi``:

==========================  ==========================================================================================
add, multiply, divide, …    u of stored results (u_s of the precision class)
exp, power                  the same, plus (4 + absolute value of the exponential's argument) u_e: range reduction
other transcendental        the same, plus 4 u_e
sum of n terms              u_a sqrt(n (sum of squares / 2 + 2/3 sum²)), absolute, then as a stored result: partial sums
                            walk at random (the sqrt n of Higham & Mary) around a straight line (the 2/3)
matrix product, einsum      operands u_p each, so that cancellation inside shows, then as a sum
scan                        every prefix is stored and inherits the errors of those before it: all of them where
                            accumulators have the dtype itself, else the log2(n) + 1 of a scan tree
solve, svd, fft, …          operands by u of the largest entry (backward stable algorithms), results by u
selection and movement      exact: maximum, where, take, concatenate, sort, comparisons, negative, …
==========================  ==========================================================================================

Results beyond the dtype's range become infinite; results among its subnormal numbers move by up to half a step.

A few runs say little about what happens rarely: a comparison, a ranking or a saturated exponential that rounding turns
once in fifty times. So the runs also note the values on which such decisions rest, and `steering` makes of their spread
the moves of two more runs, without other errors, in which every decision that rounding may turn is turned.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.conformance.precision import overflow_threshold, smallest_normal, smallest_subnormal

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.precision import Precision

__all__ = ["MonteCarloArithmetic", "Site", "steering"]

TENSOR_CORE = 2.0  # c_a of the attention sheet: accumulators of matrix units truncate
NEAR_OVERFLOW = 0.25  # from this part of the dtype's range on, another order of the same operations may overflow
FAR = 1e150  # stands for infinity among ranks, so that differences stay finite
REACH = 6.0  # standard deviations within which rounding may turn a decision
POLE = 2.0  # a pole is near if twice its distance lies within that reach
CURVED = 0.125  # an exponential whose argument errs by more than this is no longer linear in the error


class Site(NamedTuple):
    """A place where rounding may have a large effect: its kind, the values there, the axis of a ranking."""

    kind: str
    values: np.ndarray
    axis: int


class MonteCarloArithmetic:
    """The machine: how large its rounding errors are, and the generator that draws them.

    Parameters
    ----------
    precision : Precision
        Where a kernel of this class rounds.
    rng : numpy.random.Generator
        Draws every error.
    magnify : float
        Multiplies every unit roundoff; 0 makes the machine exact.
    moves : list of callable, optional
        What `steering` returned: the machine turns decisions instead of noting them.
    sign : int
        1 or -1: the two directions in which decisions are turned.

    Attributes
    ----------
    terms : int
        The longest sum so far.
    sites : list of Site
        The decisions so far.
    """

    def __init__(
        self,
        precision: Precision,
        rng: np.random.Generator,
        *,
        magnify: float = 1.0,
        moves: list[Callable[[np.ndarray, int], np.ndarray]] | None = None,
        sign: int = 1,
    ) -> None:
        matrix_unit = TENSOR_CORE if precision.accumulator != precision.dtype else 1.0
        stored = precision.accumulator if precision.name == "fused" else precision.dtype
        self.rng = rng
        self.exact = magnify == 0.0
        self.moves, self.sign = moves, sign
        self.u_stored = magnify * precision.u_s
        self.u_function = magnify * precision.u_e
        self.u_operand = magnify * precision.u_p
        self.u_sum = magnify * precision.u_a * matrix_unit
        self.largest = overflow_threshold(stored)
        self.normal, self.tiny = smallest_normal(stored), smallest_subnormal(stored)
        self.sequential = precision.accumulator == precision.dtype
        self.terms = 1
        self.sites: list[Site] = []

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """Draw one ``xi`` for each entry."""
        xi: np.ndarray = 2.0 * self.rng.random(shape) - 1.0
        return xi

    def decide(self, kind: str, values: np.ndarray, axis: int = -1) -> np.ndarray:
        """Note the values that a decision rests on; in a steered run, move them to where rounding may put them."""
        self.sites.append(Site(kind, values, axis))
        step = len(self.sites) - 1
        if self.moves is None or step >= len(self.moves):
            return values
        return self.moves[step](values, self.sign)

    def relative(self, x: Any, u: Any) -> np.ndarray:
        """Multiply every entry by ``1 + u xi`` and keep it in the range of the dtype."""
        exact = np.asarray(x)
        if self.exact:
            return exact
        moved: np.ndarray = exact * (1.0 + u * self.noise(exact.shape))
        return moved if exact.dtype.kind == "c" or np.isinf(self.largest) else self.ranged(moved)

    def ranged(self, moved: np.ndarray) -> np.ndarray:
        """Return numbers as the dtype's range has them: infinite beyond its end, in steps near zero."""
        size = np.abs(moved)
        if (size >= self.largest).any():
            moved = np.where(size >= self.largest, np.copysign(np.inf, moved), moved)
        small = size < self.normal
        if small.any():
            step = np.where(size < 0.5 * self.tiny, -moved, 0.5 * self.tiny * self.noise(moved.shape))
            moved = np.where(small & (size > 0), moved + step, moved)
        return moved

    def stored(self, x: Any) -> np.ndarray:
        """Round a result to the dtype in which results are kept."""
        return self.relative(x, self.u_stored)

    def operand(self, x: Any) -> np.ndarray:
        """Round an operand of a matrix product."""
        values = np.asarray(x)
        return self.relative(values, self.u_operand) if values.dtype.kind in "fc" else values

    def summed(self, total: Any, squares: Any, terms: int) -> np.ndarray:
        """Round a sum of ``terms`` terms, given the sum and the sum of squares of its terms."""
        self.terms = max(self.terms, terms)
        total = np.asarray(total)
        if terms > 2 and not self.exact:
            walk = np.sqrt(terms * (0.5 * np.abs(squares) + 2.0 / 3.0 * np.abs(total) ** 2))
            wandered = total + self.u_sum * walk * self.noise(total.shape)
            total = np.where(np.isfinite(total) & np.isfinite(walk), wandered, total)
        # terms near the end of the range: whoever stores the products overflows, whoever fuses them does not
        return np.where(np.sqrt(np.abs(squares)) >= NEAR_OVERFLOW * self.largest, np.nan, self.stored(total))

    def scanned(self, prefixes: np.ndarray, axis: int, ufunc: np.ufunc) -> np.ndarray:
        """Round all prefixes of a scan along ``axis``: each inherits the errors of those before it."""
        steps = prefixes.shape[axis]
        self.terms = max(self.terms, steps)
        if self.exact or not steps:
            return prefixes
        absolute = ufunc in (np.add, np.logaddexp)
        size = np.abs(prefixes) + (ufunc is np.logaddexp) if absolute else np.ones_like(prefixes)
        walk = np.cumsum(np.where(np.isfinite(size), size, 0.0) * self.noise(prefixes.shape), axis=axis)
        walk = walk * (self.u_stored if self.sequential else self.u_stored * math.sqrt((1 + math.log2(steps)) / steps))
        moved = prefixes + (walk if absolute else prefixes * walk)
        return self.stored(np.where(np.isfinite(prefixes), moved, prefixes))

    def bilinear(self, function: Callable[..., Any], operands: list[Any], terms: int) -> np.ndarray:
        """Round a sum of products: the operands, then the sum."""
        if self.exact:
            return np.asarray(function(*operands))
        rounded = [self.operand(x) for x in operands]
        return self.summed(function(*rounded), function(*(np.abs(x) ** 2 for x in rounded)), terms)


def steering(runs: list[list[Site]], magnify: float) -> list[Callable[[np.ndarray, int], np.ndarray]] | None:
    """Return, per site, how a steered run moves its values; None if the runs did not take the same steps.

    Parameters
    ----------
    runs : list of list of Site
        The sites of each erring run.
    magnify : float
        By how much their errors were enlarged.
    """
    if len({tuple((site.kind, site.values.shape) for site in run) for run in runs}) != 1:
        return None
    return [_move_seen([run[k] for run in runs], magnify) for k in range(len(runs[0]))]


def _move_seen(sites: list[Site], magnify: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return how values move that have the shape seen here: an earlier turn may lead to others, which stay."""
    move, shape = _move(sites, magnify), sites[0].values.shape
    return lambda now, sign: move(now, sign) if now.shape == shape else now


def _move(sites: list[Site], magnify: float) -> Callable[[np.ndarray, int], np.ndarray]:
    kind, values, axis = sites[0]
    stack = np.stack([site.values for site in sites])
    if kind == "rank":
        stack = np.nan_to_num(stack, nan=FAR, posinf=FAR, neginf=-FAR)  # hidden entries keep their rank
        return _swap(stack, axis if axis >= 0 else axis + values.ndim, magnify)
    stack = np.where(np.all(np.isfinite(stack), axis=0), stack, 0.0)
    if kind == "pole":
        reach = REACH * _spread(stack, relative=True) / magnify
        near = reach > POLE * np.abs(stack[0])
        # in one direction away from the pole, in the other onto it
        return lambda now, sign: np.where(near, now + reach if sign > 0 else 0.0, now)
    reach = REACH * _spread(stack) / magnify
    if kind == "exponential":
        reach = np.where(reach > REACH * CURVED, reach, 0.0)
    return lambda now, sign: now + sign * reach


def _spread(stack: np.ndarray, *, relative: bool = False) -> np.ndarray:
    """Return the standard deviation over the runs, 0 where they agree exactly.

    Few runs may agree by chance: a value takes the spread that is usual in its row, but at most four times its own.
    """
    own = np.var(stack, axis=0, ddof=1)
    if not own.ndim or not own.size:
        return np.asarray(np.sqrt(own))
    scale = np.mean(stack**2, axis=0) if relative else np.ones_like(own)
    share = np.divide(own, scale, out=np.zeros_like(own), where=scale > 0)
    row = np.median(share, axis=-1, keepdims=True) * scale
    return np.asarray(np.sqrt(np.maximum(own, np.minimum(row, 16.0 * own))))


def _swap(stack: np.ndarray, axis: int, magnify: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """Exchange neighbours in rank whose order rounding may turn: even pairs in one direction, odd ones in the other."""
    stack = np.moveaxis(stack, axis + 1, -1)
    order = np.argsort(stack[0], axis=-1, kind="stable")
    gaps = np.diff(np.take_along_axis(stack, np.broadcast_to(order, stack.shape), axis=-1), axis=-1)
    close = np.abs(np.mean(gaps, axis=0)) < REACH * _spread(gaps) / magnify if gaps.size else gaps[0] > 0

    def move(now: np.ndarray, sign: int) -> np.ndarray:
        turned = np.moveaxis(now, axis, -1).copy()
        ranked = np.take_along_axis(turned, order, axis=-1)
        first = np.arange(close.shape[-1]) % 2 == (sign < 0)
        swap = close & first
        lower = np.where(swap, ranked[..., 1:], ranked[..., :-1])
        upper = np.where(swap, ranked[..., :-1], ranked[..., 1:])
        result = ranked.copy()
        result[..., :-1] = np.where(swap, lower, result[..., :-1])
        result[..., 1:] = np.where(swap, upper, result[..., 1:])
        np.put_along_axis(turned, order, result, axis=-1)
        return np.moveaxis(turned, -1, axis)

    return move
