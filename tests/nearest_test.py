"""Which name is said to be the nearest one."""

import pytest

from ftbnn_jax import config, nearest
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

_STAGES = {"binary": {"learning_rate": 0.1, "num_epochs": 1}}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        # By what a field is called elsewhere, however it is nested.
        ("lr", "learning_rate"),
        ("LR", "learning_rate"),
        ("model.lr", "learning_rate"),
        ("stages.binary.lr", "stages.binary.learning_rate"),
        ("stages.binry.lr", "stages.binary.learning_rate"),
        ("wd", "weight_decay"),
        ("bs", "batch_size"),
        ("dtype", "compute_dtype"),
        ("layers", "model.blocks"),
        ("steps", "num_steps"),
        # By a whole word, though others share more letters.
        ("epochs", "num_epochs"),
        ("classes", "num_classes"),
        ("batch", "batch_size"),
        ("warmup", "warmup_steps"),
        ("width", "model.width"),
        ("momentum", "model.batch_norm_momentum"),
        ("max_epochs", "num_epochs"),
        # By the beginning of one.
        ("teacher_temp", "teacher_temperature"),
        ("model.act", "model.activation"),
        # By letters.
        ("lerning_rate", "learning_rate"),
        ("model.widht", "model.width"),
        ("batchsize", "batch_size"),
        ("sed", "seed"),
    ],
)
def test_the_key_that_was_meant(written, meant):
    fields = config.TrainConfig(architectures.small((1,), 8), stages=_STAGES).to_dict()
    with pytest.raises(UserError, match=f"the nearest is config.{meant}$"):
        config.check_key(fields, written)


def test_every_meaning_is_a_field():
    known = config.overrides._dotted(config.TrainConfig(architectures.small((1,), 8)).to_dict())
    assert set(config.overrides._MEANINGS.values()) <= set(known)
    assert not set(config.overrides._MEANINGS) & set(known)


@pytest.mark.parametrize("written", ["", ".", "=", "é", "x" * 5000])
def test_there_is_always_one(written):
    assert nearest.nearest(written, ["a", "b"]) in ("a", "b")
