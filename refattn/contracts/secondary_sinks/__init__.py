"""The contract of secondary sinks: who is one, for how long, how much attention it gets, and how it is made and unmade.

`detect_sinks` returns lists whose lengths depend on what is found, which no compiler can trace; its entry here is
`sink_membership`, which says the same in arrays of fixed shape. What needs a running model is tested with one.
"""

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Contract, Entry
from refattn.contracts.secondary_sinks import bugs, cases, laws
from refattn.interpretability.secondary_sinks import primary_cosines, sink_lives, sink_membership, sink_score
from refattn.interpretability.secondary_sinks_formation import matrix_entropy, mlp_alignment, rescale_sinks

__all__ = ["CONTRACT"]

_MEMBERSHIP = Entry(
    "sink_membership",
    sink_membership,
    ("hidden",),
    cases.MEMBERSHIP.scenarios(cases.MEMBERSHIP_SCENARIOS),
    cases.FAMILIES,
    cases.MEMBERSHIP.cases(cases.membership_sizes()),
    smoke=smoke(*cases.MEMBERSHIP_SCENARIOS),
    laws=laws.MEMBERSHIP_LAWS,
    axes={"hidden": ("N", "T", "d")},
    bugs=bugs.MEMBERSHIP_BUGS,
)
_COSINES = Entry(
    "primary_cosines",
    primary_cosines,
    ("hidden",),
    cases.COSINES.scenarios(cases.COSINE_SCENARIOS),
    cases.FAMILIES,
    cases.COSINES.cases(cases.membership_sizes().map(lambda sizes: {**sizes, "N": sizes["N"] // 3})),
    laws=laws.COSINE_LAWS,
    axes={"hidden": ("N", "T", "d")},
    bugs=bugs.COSINE_BUGS,
)
_LIVES = Entry(
    "sink_lives",
    sink_lives,
    ("members",),
    cases.LIVES.scenarios(cases.LIVES_SCENARIOS),
    ("none",),
    cases.LIVES.cases(cases.lives_sizes),
    laws=laws.LIVES_LAWS,
    axes={"members": ("N", "T")},
    bugs=bugs.LIVES_BUGS,
)
_SCORE = Entry(
    "sink_score",
    sink_score,
    ("pattern",),
    cases.SCORE.scenarios(cases.SCORE_SCENARIOS),
    ("normal", "peaky"),
    cases.SCORE.cases(cases.score_sizes),
    laws=laws.SCORE_LAWS,
    bugs=bugs.SCORE_BUGS,
)
_ALIGNMENT = Entry(
    "mlp_alignment",
    mlp_alignment,
    ("mlp_out",),
    cases.ALIGNMENT.scenarios(cases.ALIGNMENT_SCENARIOS),
    cases.FAMILIES,
    cases.ALIGNMENT.cases(cases.row_sizes),
    laws=laws.ALIGNMENT_LAWS,
    bugs=bugs.ALIGNMENT_BUGS,
)
_STEERING = Entry(
    "rescale_sinks",
    rescale_sinks,
    ("mlp_out", "direction"),
    cases.STEERING.scenarios(cases.STEERING_SCENARIOS),
    cases.FAMILIES,
    cases.STEERING.cases(cases.steering_sizes),
    laws=laws.STEERING_LAWS,
    bugs=bugs.STEERING_BUGS,
)
_ENTROPY = Entry(
    "matrix_entropy",
    matrix_entropy,
    ("x",),
    cases.ENTROPY.scenarios(cases.ENTROPY_SCENARIOS),
    ("normal", "peaky"),
    cases.ENTROPY.cases(cases.entropy_sizes),
    laws=laws.ENTROPY_LAWS,
    differentiable=("x",),
    bugs=bugs.ENTROPY_BUGS,
)

CONTRACT = Contract(
    "secondary_sinks",
    "Secondary attention sinks",
    "2512.22213",
    "interpretability",
    (_MEMBERSHIP, _COSINES, _LIVES, _SCORE, _ALIGNMENT, _STEERING, _ENTROPY),
)
