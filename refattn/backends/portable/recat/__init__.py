"""ReCAT in the array-API standard, all cells of one level at once.

Derived from the equations by another route than the reference. A span of the pruned chart is cut at its m split points
that close last, found from the root downwards. Every cell is projected once for each part that it plays, and pairs only
gather; spans pull from their parents what those have to tell. The tree is followed through all levels at once, so that
nothing but the chart, which is static, decides what is computed.
"""

from refattn.backends.portable.recat.model import encode_nodes, recat_encode, split_scores
from refattn.backends.portable.recat.passes import cio_cells, compose, inside_cells, spread

__all__ = ["cio_cells", "compose", "encode_nodes", "inside_cells", "recat_encode", "split_scores", "spread"]
