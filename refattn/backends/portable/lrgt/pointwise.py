"""What every part needs: affine maps, normalisation, and the exact GELU with no error function to call."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["affine", "gelu", "layer_norm", "mlp"]

# W. J. Cody, 'Rational Chebyshev approximations for the error function' (1969), as in SPECFUN [recalled]: erf up to
# 0.5, erfc from there to 4 and beyond; numerators and denominators from the highest power down
_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560, 113.864154151050156, 377.485237685302021, 3209.37758913846947),
    (1.0, 23.6012909523441209, 244.024637934444173, 1282.61652607737228, 2844.23683343917062),
)
_MIDDLE = (
    (
        2.1531153547440383e-08,
        0.5641884969886701,
        8.883149794388377,
        66.11919063714163,
        298.6351381974001,
        881.952221241769,
        1712.0476126340707,
        2051.0783778260716,
        1230.3393547979972,
    ),
    (
        1.0,
        15.744926110709835,
        117.6939508913125,
        537.1811018620099,
        1621.3895745666903,
        3290.7992357334597,
        4362.619090143247,
        3439.3676741437216,
        1230.3393548037495,
    ),
)
_LARGE = (
    (
        0.016315387137302097,
        0.30532663496123236,
        0.36034489994980445,
        0.12578172611122926,
        0.016083785148742275,
        0.0006587491615298378,
    ),
    (1.0, 2.568520192289822, 1.8729528499234673, 0.5279051029514285, 0.06051834131244132, 0.0023352049762686918),
)


def affine(x: Any, w: Any, b: Any) -> Any:
    """Return x w + b."""
    return x @ w if b is None else x @ w + b


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Centre, divide by the standard deviation, scale and shift."""
    xp = array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    return centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps) * weight + bias


def mlp(x: Any, w: Any) -> Any:
    """Transform every token by two maps with a GELU between them."""
    return affine(gelu(affine(x, w.w_1, w.b_1)), w.w_2, w.b_2)


def gelu(x: Any) -> Any:
    """Return x Φ(x), with Φ(x) = erfc(−x/√2) / 2."""
    xp = array_namespace(x)
    z = x * -(0.5**0.5)
    a = xp.abs(z)
    near = 1.0 - z * _ratio(_SMALL, xp.clip(a, 0.0, 0.5) ** 2)
    # below, arguments outside a range are moved into it: their values are not used
    middle, far = xp.clip(a, 0.5, 4.0), xp.clip(a, 4.0, 26.0)
    tail = xp.where(a <= 4.0, xp.exp(-middle * middle) * _ratio(_MIDDLE, middle), _far_tail(far))
    erfc = xp.where(a <= 0.5, near, xp.where(z < 0, 2.0 - tail, tail))
    return 0.5 * x * erfc


def _far_tail(a: Any) -> Any:
    """Return erfc of arguments from 4 on."""
    xp = array_namespace(a)
    y = 1.0 / (a * a)
    return xp.exp(-a * a) / a * (1.0 / math.sqrt(math.pi) - y * _ratio(_LARGE, y))


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Any) -> Any:
    """Return the quotient of two polynomials."""
    above, below = (reduce(lambda value, c: value * x + c, part[1:], part[0]) for part in coefficients)
    return above / below
