"""A packed network as a folder of portable C99, and the proof that it computes the same integers."""
