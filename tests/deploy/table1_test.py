"""Every method of Table 1 is packed, with the same integers."""

import dataclasses

import networks
import pytest

from ftbnn_jax.deploy import export, runtime, verify
from ftbnn_jax.nn import architectures

_SHAPE = {"blocks": (2, 2), "width": 9, "stem_features": 9, "stem_kernel": 3, "stem_pool": False}


@pytest.mark.parametrize("method", [*architectures.TABLE1, "coupled"])
def test_the_packed_integers_are_those_of_training(method):
    coupled = {"ternary": "coupled"} if method == "coupled" else {}
    net = architectures.table1("binaryduo" if coupled else method)
    config, variables, artifact = networks.build(dataclasses.replace(net, **_SHAPE, **coupled), 12)
    assert len(artifact.report.packed) == 4
    assert not [
        line
        for line in artifact.report.not_packed
        if line.layer.endswith("/conv") and "block" in line.layer
    ]
    found = verify.verify(
        export.network(config), variables, runtime.Runtime(artifact), [networks.images(12)]
    )
    assert found.differing == 0
    assert found.images == found.agreeing == 3
