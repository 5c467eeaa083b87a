"""Benchmarks: generators of tasks with exact labels, and the architectures that are tested on them."""
