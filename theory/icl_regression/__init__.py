"""In-context linear regression: what a trained multi-head softmax attention computes, and how it gets there."""
