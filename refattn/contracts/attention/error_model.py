"""The error model of attention: what rounding may do to it, derived from the case, in every declared precision class.

Equation source: the attention sheet, section 2.8. Steps A to C (errors of the logits, elementwise bound, statistical
scale) are `error_steps`, the low-precision twins of Step D `error_twins`. Budgets of the forward pass are made in
`error_forward`, of the gradients in `error_gradients`, of rotary embedding in `error_rotary`. Step E, the verdict,
knows no attention: it is `refattn.conformance.verdict`.
"""

from refattn.contracts.attention.error_forward import attention_budget
from refattn.contracts.attention.error_gradients import gradient_budget
from refattn.contracts.attention.error_rotary import rope_budget
from refattn.contracts.attention.error_twins import twin

__all__ = ["attention_budget", "gradient_budget", "rope_budget", "twin"]
