"""A mechanism small enough to test the kit with."""
