"""The theory of conditioned memories: interference, capacity, depth, learning rules and conditioning (2508.08289)."""
