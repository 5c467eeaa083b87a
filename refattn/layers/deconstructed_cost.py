"""What each variant costs, in the paper's own count: floating-point operations, bytes of cache, parameters."""

from __future__ import annotations

from refattn.layers.deconstructed import FIXED, VARIANTS
from refattn.primitives.arguments import require, require_one_of

__all__ = ["STAGES", "cache_bytes", "flops", "parameter_count"]

STAGES = ("prefill", "decode")


def flops(
    variant: str, *, batch: int, length: int, width: int, stage: str = "prefill", cached_maps: bool = False
) -> int:
    """Return the operations of one layer: of a whole prompt, or of one more token.

    Parameters
    ----------
    variant : str
        One of `refattn.layers.deconstructed.VARIANTS`.
    batch, length, width : int
        b, L, d.
    stage : {"prefill", "decode"}
        A prompt of L tokens, or the token after them.
    cached_maps : bool
        For the fixed variants: the maps are already known.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        For unknown names, sizes below zero, or cached maps of a variant that has none.

    Notes
    -----
    The paper leaves W_O out of its count; the number of heads cancels. With cached maps two of its terms, 2 L² d of the
    prompt and 2 d² of the next token, do not grow with the batch; they stand here as printed.

    References
    ----------
    2510.11602, Tables 6 and 7.
    """
    _check(variant, batch, length, width)
    require_one_of("stage", stage, STAGES)
    require(variant in FIXED or not cached_maps, f"cached_maps=True, but maps of variant={variant!r} depend on input")
    b, L, d = batch, length, width
    kind = "fixed" if variant in FIXED else variant
    # eq: dec-flops
    prefill = {
        "standard": 4 * b * L**2 * d + 6 * b * L * d**2,
        "static_emb": 4 * b * L**2 * d + 6 * b * L * d**2,
        "mlp": 6 * b * L * d**2,
        "non_approximate": 6 * b * L * d**2,
        "approximate": 14 * b * L * d**2,
        "fixed": 2 * L**2 * d + 2 * b * L * d * (d if cached_maps else L + 3 * d),
    }
    decode = {
        "standard": 4 * b * L * d + 6 * b * d**2,
        "static_emb": 4 * b * L * d + 6 * b * d**2,
        "mlp": 6 * b * d**2,
        "non_approximate": 6 * b * d**2,
        "approximate": 10 * b * d**2,
        "fixed": 2 * b * L * d + (2 * d**2 if cached_maps else 2 * L * d + 6 * b * d**2),
    }
    return (prefill if stage == "prefill" else decode)[kind]


def cache_bytes(variant: str, *, batch: int, length: int, width: int, n_heads: int) -> int:
    """Return the bytes that one layer keeps for the next token, two a number.

    Parameters
    ----------
    variant : str
        One of `refattn.layers.deconstructed.VARIANTS`.
    batch, length, width, n_heads : int
        b, L, d, h.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        For an unknown variant, sizes below zero, or heads that do not divide the width.

    References
    ----------
    2510.11602, Table 8.
    """
    _check(variant, batch, length, width)
    require(n_heads >= 1 and width % n_heads == 0, f"n_heads={n_heads!r} must divide the width d = {width}")
    # eq: dec-cache
    return {
        "mlp": 0,
        "approximate": 6 * batch * width + 4 * batch * width**2 // n_heads,
        "non_approximate": 2 * batch * width + 4 * batch * n_heads,
        **dict.fromkeys(FIXED, 2 * (batch + 1) * length * width),
    }.get(variant, 4 * batch * length * width)


def parameter_count(variant: str, width: int) -> int:
    """Return how many numbers a layer of this variant learns: 4 d², whichever it is."""
    _check(variant, 0, 0, width)
    return 4 * width**2


def _check(variant: str, batch: int, length: int, width: int) -> None:
    require_one_of("variant", variant, VARIANTS)
    for name, size in (("batch", batch), ("length", length), ("width", width)):
        require(size >= 0, f"{name}={size!r} must be >= 0")
