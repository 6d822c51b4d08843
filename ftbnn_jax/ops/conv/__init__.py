"""Convolution of real numbers and of signs in the training graph."""
