"""Models built by hand, so that what an analysis must find is known: real checkpoints with a planted truth."""
