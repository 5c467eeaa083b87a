"""What bi-level routing attention costs, the number of regions that costs least, and the size of the whole model.

Counted in multiply-adds, norms and activations left out. BiFormer, arXiv 2303.08810, section 3.3; the formulas are
[derived] from the released code and agree with its printed table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from refattn.layers.biformer_model import BiFormerConfig

__all__ = [
    "BRACost",
    "ModelCost",
    "bra_cost",
    "common_divisors",
    "dense_attention_cost",
    "model_cost",
    "optimal_region_factor",
    "optimal_routed_cost",
]


class BRACost(NamedTuple):
    """Multiply-adds of one layer and image, by part."""

    projections: float
    routing: float
    attention: float
    lepe: float

    @property
    def routed(self) -> float:
        """What depends on the number of regions: routing and attention."""
        return self.routing + self.attention


class ModelCost(NamedTuple):
    """Parameters of a model, and its multiply-adds for one image."""

    parameters: int
    macs: int


def bra_cost(N: float, S: float, k: float, C: float, *, routing_weight: float = 1.0, lepe_kernel: int = 0) -> BRACost:
    """Count the multiply-adds of one layer of bi-level routing attention.

    Parameters
    ----------
    N : float
        Tokens, H · W.
    S : float
        Regions per side; fractions are allowed, to study the formula.
    k : float
        Regions that each region attends to.
    C : float
        Channels, Cq = C.
    routing_weight : float
        1 counts the product of the descriptors as it is; 2 is the paper's convention [recalled].
    lepe_kernel : int
        Side of the depth-wise kernel; 0 for none.

    Returns
    -------
    BRACost
        4 N C² for the projections, S⁴ C for routing (times ``routing_weight``), 2 k N² C / S² for attention and
        kernel² N C for the local enhancement.

    Raises
    ------
    ValueError
        If N, S, k or C is not positive.
    """
    require(min(N, S, k, C) > 0, f"N={N}, S={S}, k={k}, C={C} must be positive")
    # eq: cost-1
    return BRACost(
        projections=4 * N * C**2,
        routing=routing_weight * S**4 * C,
        attention=2 * k * N**2 * C / S**2,
        lepe=lepe_kernel**2 * N * C,
    )


def optimal_region_factor(N: float, k: float, *, routing_weight: float = 1.0) -> float:
    """Return the S that balances routing, which grows as S⁴, against attention, which falls as 1/S².

    Parameters
    ----------
    N, k, routing_weight
        As for `bra_cost`.

    Returns
    -------
    float
        S* = (k N² / routing_weight)^(1/6).

    Raises
    ------
    ValueError
        If an argument is not positive.

    References
    ----------
    BiFormer, arXiv 2303.08810, eq. 11 [recalled]; there with ``routing_weight`` 2.
    """
    require(min(N, k, routing_weight) > 0, f"N={N}, k={k}, routing_weight={routing_weight} must be positive")
    # eq: cost-2
    return float((k * N**2 / routing_weight) ** (1 / 6))


def optimal_routed_cost(N: float, k: float, C: float, *, routing_weight: float = 1.0) -> float:
    """Return routing plus attention at the best S: 3 (k N²)^(2/3) C, which grows as N^(4/3).

    Parameters
    ----------
    N, k, C, routing_weight
        As for `bra_cost`.

    Returns
    -------
    float
        Multiply-adds.

    Raises
    ------
    ValueError
        If an argument is not positive.
    """
    # eq: cost-3
    return bra_cost(
        N, optimal_region_factor(N, k, routing_weight=routing_weight), k, C, routing_weight=routing_weight
    ).routed


def dense_attention_cost(N: float, C: float) -> float:
    """Return the multiply-adds of attention from every token to every token: 2 N² C."""
    return 2 * N**2 * C


def common_divisors(height: int, width: int) -> list[int]:
    """Return every S that divides a map of ``height`` × ``width`` into equal regions."""
    return [S for S in range(1, min(height, width) + 1) if height % S == 0 and width % S == 0]


def model_cost(config: BiFormerConfig, *, image: int = 224) -> ModelCost:
    """Count the parameters of a model and its multiply-adds for a square image.

    Parameters
    ----------
    config : BiFormerConfig
        The model's shape.
    image : int
        Side of the image.

    Returns
    -------
    ModelCost
        Running statistics of batch normalisation are no parameters.

    Raises
    ------
    ValueError
        If the regions do not divide a map of a routed stage.
    """
    parameters, macs, side = 0, 0, image
    widths = (config.channels, *config.width)
    for i, (C_in, C, depth, topk) in enumerate(zip(widths[:-1], config.width, config.depth, config.topk, strict=True)):
        p, m, side = _embedding(config, i, C_in, C, side)
        require(topk <= 0 or side % config.n_win == 0, f"stage {i} has side {side}, not divisible by {config.n_win}")
        N = side * side
        # eq: cost-4
        parameters += p + depth * _block_parameters(config, C, topk)
        macs += m + depth * _block_macs(config, N, C, topk)
    C = config.width[-1]
    head = C * config.classes
    return ModelCost(parameters + 2 * C + head + config.classes, macs + head)


def _embedding(config: BiFormerConfig, i: int, C: int, D: int, side: int) -> tuple[int, int, int]:
    """Return parameters, multiply-adds and the side of the map that comes out."""
    if config.layout == "swin":
        patch, normed = (2, C) if i else (4, D)
        side //= patch
        kernel = patch * patch * C * D
        return kernel + D + 2 * normed, kernel * side * side, side
    parameters = macs = 0
    for c, d in [(C, D)] if i else [(C, D // 2), (D // 2, D)]:
        side = math.ceil(side / 2)
        kernel = 9 * c * d
        parameters, macs = parameters + kernel + d + 2 * d, macs + kernel * side * side
    return parameters, macs, side


def _block_parameters(config: BiFormerConfig, C: int, topk: int) -> int:
    position = 9 * C + C if config.layout == "biformer" else 0
    norms = 4 * C
    first = C * C + C if topk == 0 else 3 * C * C + (3 * C if topk > 0 else 0)
    ks = config.mixing_kernel(topk)
    lepe = ks**2 * C + C if ks else 0
    output = C * C + C
    E = config.mlp_ratio * C
    return position + norms + first + lepe + output + (C * E + E) + (E * C + C)


def _block_macs(config: BiFormerConfig, N: int, C: int, topk: int) -> int:
    position = 9 * N * C if config.layout == "biformer" else 0
    lepe = config.mixing_kernel(topk) ** 2 * N * C
    maps = (2 if topk == 0 else 4) * N * C * C + 2 * N * C * config.mlp_ratio * C
    mixing = 0 if topk == 0 else 2 * N * N * C
    if topk > 0:
        mixing = round(bra_cost(N, config.n_win, topk, C).routed)
    return position + lepe + maps + mixing
