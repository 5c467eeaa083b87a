"""The laws of attention: what every correct implementation obeys, stated without one value of the reference.

Equation source: the attention sheet, section 4. Each law names the planted bug that it must expose on its own.
"""

from __future__ import annotations

from refattn.contracts.attention.laws.gradients import GRADIENT_LAWS
from refattn.contracts.attention.laws.packing import DOCUMENT_LAWS, MERGE_LAWS, PAGED_LAWS, SPLIT_LAWS, VARLEN_LAWS
from refattn.contracts.attention.laws.rotary import ROTARY_LAWS
from refattn.contracts.attention.laws.symmetry import SYMMETRY_LAWS
from refattn.contracts.attention.laws.values import VALUE_LAWS
from refattn.contracts.attention.laws.visibility import VISIBILITY_LAWS

__all__ = ["ATTENTION_LAWS", "GRADIENT_LAWS", "MERGE_LAWS", "PAGED_LAWS", "ROTARY_LAWS", "VARLEN_LAWS"]

ATTENTION_LAWS = (*SYMMETRY_LAWS, *VISIBILITY_LAWS, *VALUE_LAWS, *DOCUMENT_LAWS, *SPLIT_LAWS)
