"""A decoder-only transformer in NumPy that loads real checkpoints and shows every activation."""
