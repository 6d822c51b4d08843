"""Binary convolution on bits in words."""
