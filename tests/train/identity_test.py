"""What a checkpoint says of itself decides what it can be used for, and how."""

import dataclasses

import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import identity

NAMES = ("cat", "dog", "bird")
CONFIG = config_lib.TrainConfig(
    architectures.small((1, 1), 4, groups=3),
    image_size=8,
    num_classes=4,
    batch_size=8,
    num_epochs=4,
    augment="pad_crop",
    pixel_mean=(70.0,),
    pixel_std=(90.0,),
)
FLAT = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, head="flatten"))
# Classes of the same names in another order.
OTHERS = ("cat", "bird", "dog")


def split(names=NAMES, channels=3, count=80):
    images = np.broadcast_to(np.zeros((), np.uint8), (count, 8, 8, channels))
    return sets.ArraySplit(images, np.zeros(count, np.int32), names)


def change(config=CONFIG, **fields):
    return dataclasses.replace(config, **fields)


OTHERWISE = {
    "batch_norm_momentum": 0.5,
    "ste_bound": 1.0,
    "slope_start": (0.5, 0.5, 0.5),
    "activation_gradient": "evolving",
    "weight_gradient": "piecewise_quadratic",
}
TRAINED_OTHERWISE = change(model=dataclasses.replace(CONFIG.model, **OTHERWISE))
GROUPS = change(model=architectures.small((1, 1), 4, groups=2))
SAID = {
    "channels": "channels of the images=3, here it is 1",
    "classes": "other classes, or in another order: number 1 is 'dog' there, 'bird' here",
    "fewer": "3 named classes, here there are 2",
    "groups": "config.model.groups=3, here it is 2",
    "num": "config.num_classes=4, here it is 5",
    "size": "config.image_size=8, here it is 16",
    "mean": "config.pixel_mean=(70.0, 70.0, 70.0), here it is (70.0, 70.0, 71.0)",
    "std": "config.pixel_std=(90.0, 90.0, 90.0), here it is (91.0, 91.0, 91.0)",
    "crop": "config.augment=\"'pad_crop' or 'none'\", here it is \"'resize_crop' or 'resized_crop'\"",
}


@pytest.mark.parametrize(
    ("what", "saved", "config", "images", "refused", "told"),
    [
        ("channels", CONFIG, CONFIG, split(channels=1), "resume start_from teacher use", ""),
        ("classes", CONFIG, CONFIG, split(OTHERS), "teacher use", "resume"),
        ("fewer", CONFIG, CONFIG, split(NAMES[:2]), "teacher use", "resume"),
        ("groups", CONFIG, GROUPS, split(), "resume use", ""),
        # Training in another way leaves the network what it is; `warn_of_changes` tells it.
        ("", CONFIG, TRAINED_OTHERWISE, split(), "", ""),
        ("num", CONFIG, change(num_classes=5), split(), "resume teacher use", ""),
        ("size", CONFIG, change(image_size=16), split(), "teacher use", "start_from"),
        ("size", FLAT, change(FLAT, image_size=16), split(), "resume start_from teacher use", ""),
        ("mean", CONFIG, change(pixel_mean=(70.0, 70.0, 71.0)), split(), "use", "start_from"),
        ("std", CONFIG, change(pixel_std=(91.0,)), split(), "use", "start_from"),
        ("crop", CONFIG, change(augment="resized_crop"), split(), "use", "start_from"),
        # The same in other words, and what makes no difference to what a net sees or means.
        ("", CONFIG, change(pixel_mean=(70.0, 70.0, 70.0)), split(), "", ""),
        ("", CONFIG, change(augment="none", dataset="fake", seed=7), split(count=3), "", ""),
        # Classes are known only when the images are there.
        ("", CONFIG, CONFIG, None, "", ""),
    ],
)
def test_each_use_refuses_or_tells_what_matters_to_it(
    what, saved, config, images, refused, told, capsys
):
    described = identity.describe(saved, split())
    # JSON returns lists.
    described["config"]["pixel_mean"] = list(described["config"]["pixel_mean"])
    for use in ("resume", "start_from", "teacher", "use"):
        message = ""
        try:
            identity.check("runs/1", described, config, images, use)
        except UserError as error:
            message = str(error)
        warning = capsys.readouterr().err
        assert bool(message) == (use in refused.split()), use
        assert bool(warning) == (use in told.split()), use
        if message:
            assert message.startswith(f"runs/1: was trained with {SAID[what]}")
        if warning:
            text = (
                f"warning: runs/1: was trained with {SAID[what]}; the training goes on with the latter"
            )
            assert warning == text + "\n"


# Step 5 of 4 epochs of 80 images in batches of 8: image 40, of 40 steps.
COSINE = [0.01 * (1 + np.cos(np.pi * 5 / n)) / 2 for n in (40, 20, 80)]


@pytest.mark.parametrize(
    ("fields", "count", "changed", "moved"),
    [
        (
            {"batch_size": 16},
            80,
            "config.batch_size is now 16; the checkpoint was made with 8",
            "images are taken from number 80 of the training on instead of 40; 40 are passed over; "
            f"the last step is 20 instead of 40; the learning rate is {COSINE[1]:.4g} instead of "
            f"{COSINE[0]:.4g}",
        ),
        (
            {"batch_size": 4, "num_steps": 40},
            80,
            "config.num_steps is now 40; the checkpoint was made with 0",
            "images are taken from number 20 of the training on instead of 40; 20 come again",
        ),
        (
            {"num_epochs": 8},
            80,
            "config.num_epochs is now 8; the checkpoint was made with 4",
            f"the last step is 80 instead of 40; the learning rate is {COSINE[2]:.4g} instead of "
            f"{COSINE[0]:.4g}",
        ),
        (
            {"seed": 3},
            80,
            "config.seed is now 3; the checkpoint was made with 0",
            "images come in another order: of this epoch some come again and some never",
        ),
        (
            {"train_split": "train[:90%]", "num_steps": 40},
            72,
            "config.train_split is now 'train[:90%]'; the checkpoint was made with 'train'",
            "they are those of another split",
        ),
        ({"num_steps": 40}, 79, "", "an epoch has 79 images instead of 80, in another order"),
        (
            {"learning_rate": 0.02, "schedule": "constant"},
            80,
            "config.learning_rate is now 0.02; the checkpoint was made with 0.01",
            f"the learning rate is 0.02 instead of {COSINE[0]:.4g}",
        ),
        ({"flip": False}, 80, "config.flip is now False; the checkpoint was made with True", ""),
        ({}, 80, "", ""),
    ],
)
def test_what_a_change_moves_is_told_in_numbers(fields, count, changed, moved, capsys):
    saved = identity.describe(CONFIG, split())
    identity.warn_of_changes(saved, change(**fields), split(count=count), 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1:] == ([f"warning: from step 5 on {moved}"] if moved else lines[-1:])
    assert (f"warning: {changed}" in lines) == bool(changed)
    assert len(lines) == len([f for f in fields]) + bool(moved)


def test_how_the_net_is_trained_may_change_and_is_told(capsys):
    identity.warn_of_changes(identity.describe(CONFIG, split()), TRAINED_OTHERWISE, split(), 5)
    before = {
        "batch_norm_momentum": 0.9,
        "ste_bound": 1.2,
        "slope_start": (0.25, 1.0, 1.0),
        "activation_gradient": "clipped",
        "weight_gradient": "clipped",
    }
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(
        f"warning: config.model.{name} is now {value!r}; the checkpoint was made with {before[name]!r}"
        for name, value in OTHERWISE.items()
    )


def test_a_checkpoint_may_be_older_than_some_fields(capsys):
    saved = identity.describe(CONFIG, split())
    del saved["num_examples"], saved["config"]["crop_padding"]
    del saved["config"]["model"]["head"], saved["config"]["model"]["ste_bound"]
    identity.check("runs/1", saved, CONFIG, split(), "resume")
    identity.warn_of_changes(saved, CONFIG, split(), 5)
    assert capsys.readouterr().err == ""
