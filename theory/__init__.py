"""Theories of attention, simulated: every curve with its prediction beside it and a verdict.

``python -m theory list`` names the experiments. Each is a frozen dataclass of parameters, cells that can be computed
anywhere and in any order, and the checks that hold what was measured against what was predicted.
"""
