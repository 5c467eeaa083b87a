"""Accelerated implementations, each checked against the references."""
