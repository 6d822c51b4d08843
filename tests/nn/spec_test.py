"""What a ResNetSpec builds, refuses and keeps."""

import dataclasses
import json

import pytest

from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.spec import Architecture, ResNetSpec


def _plan(net):
    return {p.name: p for p in net.plan()}


@pytest.mark.parametrize(
    ("net", "bridges", "blocks"),
    [
        (architectures.baseline(), 0, (4, 4, 4, 4)),
        (architectures.derived(18, 1), 1, (4, 4, 4, 4)),
        (architectures.derived(34, 3), 1, (6, 8, 12, 6)),
        (architectures.derived(44, 5), 1, (8, 10, 14, 10)),
        (architectures.small((2, 1), 8), 0, (2, 1)),
    ],
)
def test_a_layer_is_a_binary_convolution_the_stem_or_the_classifier(net, bridges, blocks):
    plan = net.plan()
    assert len(plan) == bridges + sum(blocks)
    assert [p.name for p in plan] == ["bridge"] * bridges + [
        f"block{s + 1}_{b + 1}" for s, count in enumerate(blocks) for b in range(count)
    ]


@pytest.mark.parametrize(("layers", "blocks"), architectures.LAYER_BLOCKS.items())
def test_layer_counts_of_the_paper(layers, blocks):
    # The stem's convolution and the classifier are the two real layers.
    assert sum(blocks) == layers - 2


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (architectures.baseline(), ["block2_1", "block3_1", "block4_1"]),
        (architectures.derived(44, 5), ["block2_1", "block3_1", "block4_1"]),
        (architectures.small((2, 2), 8, stem_activation="relu"), ["block1_1", "block2_1"]),
        # A block without an activation between gives negative values again.
        (architectures.small((2, 1), 8, activation="none"), ["block2_1"]),
        (architectures.small((2, 2), 8, stage_end_activation="fprelu"), []),
        (
            architectures.small((2, 2), 8, activation="relu", stage_end_activation="prelu"),
            ["block1_2", "block2_2"],
        ),
        (architectures.small((1, 1), 8, bridge=True, stem_activation="relu"), ["bridge", "block2_1"]),
        (architectures.small((1,), 8, bridge=True, activation="relu"), ["block1_1"]),
    ],
)
def test_which_convolutions_read_a_relus_output(net, expected):
    assert [p.name for p in net.plan() if p.after_relu] == expected


@pytest.mark.parametrize(
    ("net", "name", "in_features", "features", "conv_in", "groups", "stride", "shortcut", "activation"),
    [
        (architectures.baseline(), "block1_1", 64, 64, 64, 1, 1, "identity", "fprelu"),
        (architectures.baseline(), "block2_1", 64, 128, 64, 1, 2, "conv", "fprelu"),
        (architectures.baseline(), "block4_4", 512, 512, 512, 1, 1, "identity", "relu"),
        (architectures.derived(18, 1), "bridge", 32, 128, 32, 1, 1, "none", "fprelu"),
        (architectures.derived(18, 1), "block1_1", 128, 128, 128, 1, 1, "identity", "fprelu"),
        # The duplicated input makes groups of its halves: at least 2.
        (architectures.derived(18, 1), "block2_1", 128, 256, 256, 2, 2, "duplicate", "fprelu"),
        (architectures.derived(18, 1), "block2_2", 256, 256, 256, 1, 1, "identity", "fprelu"),
        (architectures.derived(44, 5), "bridge", 32, 154, 32, 1, 1, "none", "fprelu"),
        (architectures.derived(44, 5), "block3_1", 308, 616, 616, 5, 2, "duplicate", "fprelu"),
        (architectures.derived(44, 5), "block3_14", 616, 616, 616, 5, 1, "identity", "relu"),
        (
            architectures.derived(34, 8, 90),
            "block4_1",
            4 * 164,
            8 * 164,
            8 * 164,
            8,
            2,
            "duplicate",
            "fprelu",
        ),
    ],
)
def test_plan_of_a_block(
    net, name, in_features, features, conv_in, groups, stride, shortcut, activation
):
    p = _plan(net)[name]
    assert p.conv_in_features == conv_in
    assert dataclasses.astuple(p) == (
        name, in_features, features, groups, stride, shortcut, activation, p.after_relu, 1, (0.0,)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (architectures.baseline(), 8 * 64),
        (architectures.derived(44, 5), 8 * 154),
        (architectures.small((1, 1, 1), 6), 4 * 6),
    ],
)
def test_features_are_those_of_the_last_block(net, expected):
    assert net.features == net.plan()[-1].features == expected


@pytest.mark.parametrize(
    ("sign", "expected"),
    [("three_valued", {False}), ("two_valued", {False, True})],
)
def test_only_two_valued_signs_away_from_relu_send_zero_to_minus_one(sign, expected):
    net = architectures.small((2, 2), 8, sign=sign)
    assert {net.two_valued_sign(p) for p in net.plan()} == expected
    assert not any(net.two_valued_sign(p) for p in net.plan() if p.after_relu)


@pytest.mark.parametrize(
    ("fields", "found", "would_do"),
    [
        (
            {"stem_activation": "gelu"},
            "model.stem_activation='gelu'",
            "none, relu, hardtanh, prelu, fprelu",
        ),
        ({"activation": None}, "model.activation=None", "none, relu, hardtanh, prelu, fprelu"),
        ({"stage_end_activation": "x"}, "model.stage_end_activation='x'", "relu"),
        ({"downsample": "pool"}, "model.downsample='pool'", "conv, duplicate"),
        ({"sign": "Sign"}, "model.sign='Sign'", "three_valued, two_valued"),
        ({"width": 0}, "model.width=0", "at least 1"),
        ({"groups": -1}, "model.groups=-1", "at least 1"),
        ({"stem_features": 0}, "model.stem_features=0", "at least 1"),
        ({"stem_stride": 0}, "model.stem_stride=0", "at least 1"),
        ({"blocks": ()}, "model.blocks=()", "a tuple of 1 to 10 whole numbers"),
        ({"blocks": (2, 0)}, "model.blocks=(2, 0)", "at least 1"),
        ({"stem_kernel": 4}, "model.stem_kernel=4", "odd and positive"),
        ({"stem_kernel": -1}, "model.stem_kernel=-1", "at least 1"),
        ({"stem_features": 32}, "model.stem_features=32", "model.width=64"),
        ({"groups": 65}, "model.groups=65", "1 to 64"),
        ({"batch_norm_momentum": 1.0}, "model.batch_norm_momentum=1.0", r"in [0, 1)"),
        ({"batch_norm_momentum": -0.1}, "model.batch_norm_momentum=-0.1", r"in [0, 1)"),
        ({"ste_bound": 0.0}, "model.ste_bound=0.0", "positive"),
        ({"ste_bound": float("nan")}, "model.ste_bound=nan", "positive"),
        ({"slope_start": (0.25, 1.0)}, "model.slope_start=(0.25, 1.0)", "3 numbers: of PReLU"),
        ({"slope_start": (0.25, 1.0, float("inf"))}, "model.slope_start=(0.25, 1.0, inf)", "finite"),
        ({"batch_norm_epsilon": -1e-5}, "model.batch_norm_epsilon=-1e-05", "positive"),
        ({"widht": 8}, "model.widht", "width"),
    ],
)
def test_errors_name_the_field_its_value_and_what_would_do(fields, found, would_do):
    with pytest.raises(UserError) as error:
        ResNetSpec.from_dict(ResNetSpec().to_dict() | fields)
    message = str(error.value)
    assert message.startswith(found)
    assert would_do in message.removeprefix(found)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "found", "would_do"),
    [
        ((44, 1, 90), "budget=90", "44 layers at 135"),
        ((18, 1, 100), "budget=100", "18 layers at 90"),
        ((50, 1, 135), "budget=135", "34 layers at 135"),
        ((18, 2, 135), "groups=2", "1, 3, 5, 8"),
    ],
)
def test_derived_names_the_nets_there_are(arguments, found, would_do):
    with pytest.raises(UserError) as error:
        architectures.derived(*arguments)
    assert str(error.value).startswith(found)
    assert would_do in str(error.value)


@pytest.mark.parametrize(
    "net",
    [
        architectures.baseline(),
        architectures.derived(44, 5),
        architectures.small(
            (1, 2), 6, groups=4, sign="two_valued", ste_bound=1.0, batch_norm_momentum=0.5
        ),
    ],
)
def test_a_spec_survives_json(net):
    fields = net.to_dict()
    assert set(fields) == {field.name for field in dataclasses.fields(ResNetSpec)}
    again = ResNetSpec.from_dict(json.loads(json.dumps(fields)))
    assert again == net
    # A hash is what lets flax and jit take a spec as a static attribute; a list of blocks has none.
    assert hash(again) == hash(net)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"batch_norm_momentum": 0.5}, True),
        ({"ste_bound": 1.0}, True),
        ({"activation_gradient": "evolving"}, True),
        ({"weight_gradient": "evolving"}, True),
        # What a trained network computes follows from these.
        ({"batch_norm_epsilon": 1e-3}, False),
        ({"sign": "two_valued"}, False),
        ({"scaling": "mean_abs"}, False),
        ({"binary_weights": False}, False),
        ({"blocks": (4, 4, 4, 2)}, False),
    ],
)
def test_how_a_network_is_trained_is_no_part_of_its_architecture(fields, same):
    net, other = ResNetSpec(), ResNetSpec(**fields)
    assert (net.architecture == other.architecture) == same
    assert (hash(net.architecture) == hash(other.architecture)) == same
    assert (net.training() == other.training()) != same
    assert net != other
    assert other.plan() == other.architecture.plan()


def test_a_field_is_the_architectures_or_trainings():
    net = ResNetSpec()
    assert net.to_dict() == {**net.architecture.to_dict(), **net.training()}
    assert not net.architecture.to_dict().keys() & net.training().keys()
    assert Architecture.from_dict(net.architecture.to_dict()) == net.architecture
    with pytest.raises(UserError, match=r"model\.ste_bound: no such field"):
        Architecture.from_dict(net.architecture.to_dict() | {"ste_bound": 1.0})
