"""Geometry of 2-D convolutions: how the size of an output follows from that of an input."""

Pair = tuple[int, int]
# Positions of 0 before and after the rows, then before and after the columns.
Padding = tuple[Pair, Pair]


def output_size(
    size: int, kernel_size: int, stride: int, padding: Pair = (0, 0), dilation: int = 1
) -> int:
    """Returns the number of output positions along one axis.

    Args:
      size: input positions.
      kernel_size: of the kernel along this axis, in taps.
      stride: input positions between neighbouring windows.
      padding: positions added before and after the input.
      dilation: input positions between neighbouring taps of a window.
    """
    return (size + sum(padding) - dilation * (kernel_size - 1) - 1) // stride + 1
