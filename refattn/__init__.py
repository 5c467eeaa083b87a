"""Reference implementations of attention mechanisms in pure NumPy, and a kit that checks kernels against them."""

__version__ = "0.1.0"
