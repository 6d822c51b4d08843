"""A network's loops, with its layers in integers as a program's options ask for them."""

import dataclasses

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import arithmetic, integer_layers, lowering
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.deploy.c.schedule import Network


def lower(artifact: artifact_lib.Artifact, options: Options) -> Network:
    """Makes loops of a graph, as `lowering.lower`, and integers of its real layers' weights.

    Raises:
      UserError: there is an operation that the C program does not have, a weight is not finite, or
        `options.input_bits` are those of another network.
    """
    network = lowering.lower(artifact, options.real_bits)
    if options.real_bits == 32:
        return network
    tables = {name: arithmetic.pixel_table(network, name) for name in network.tables}
    layers = integer_layers.quantize(network, options.input_bits, tables)
    return dataclasses.replace(network, layers=layers)
