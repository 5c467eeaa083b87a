"""Random-feature attention: what a layer with frozen random heads and learned values can learn, from how many examples.

Samplers and targets, the fit of many targets and sample sizes at once, and the predictions: infinitely many heads,
generalised cross-validation, the risk of kernel ridge regression from its spectrum, and the exact limits of two simpler
models that show the same double descent.
"""
