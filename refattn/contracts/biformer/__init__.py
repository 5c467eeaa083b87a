"""BiFormer: bi-level routing attention and its parts."""

from refattn.conformance.contract import Contract
from refattn.contracts.biformer.block import BLOCK
from refattn.contracts.biformer.convolution import CONVOLUTION
from refattn.contracts.biformer.layer import LAYER, NCHW, SCALE
from refattn.contracts.biformer.pooling import POOLING
from refattn.contracts.biformer.regional import REGIONAL
from refattn.contracts.biformer.routing import ROUTING

__all__ = ["CONTRACT"]

CONTRACT = Contract(
    slug="biformer",
    title="Bi-level routing attention",
    paper="2303.08810",
    family="layers",
    entries=(LAYER, REGIONAL, ROUTING, POOLING, CONVOLUTION, NCHW, BLOCK),
    conventions=(SCALE,),
)
