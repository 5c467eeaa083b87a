"""The toy contract, found by scanning like any other."""
