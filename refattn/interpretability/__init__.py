"""Interpretability: read a running transformer."""
