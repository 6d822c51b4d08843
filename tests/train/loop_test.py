"""Whole runs: learning, resuming, stopping."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import event_files
import jax
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import batches, sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import interrupt, lock
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, evaluation, loop

CONFIG = config_lib.TrainConfig(
    # A gradient that depends on how far the training is.
    architectures.small(
        (1, 1), 8, groups=2, activation_gradient="evolving", stage_end_activation="prelu"
    ),
    dataset="digits",
    image_size=8,
    num_classes=10,
    batch_size=32,
    num_steps=12,
    eval_every=5,
    checkpoint_every=4,
    keep_checkpoints=2,
    log_every=3,
    augment="pad_crop",
    crop_padding=1,
    pixel_mean=(73.0,),
    pixel_std=(90.0,),
)


def records(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one, other):
    """Final variables and metrics equal bit for bit."""
    (variables, _, step), (expected, _, last) = (
        checkpoint.load_variables(str(workdir)) for workdir in (one, other)
    )
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


# Two batches of 32, and a rest of two.
pytestmark = pytest.mark.usefixtures("few_test_images")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, few_test_images):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    loop.train(CONFIG, str(workdir))
    return workdir


def test_what_a_run_leaves(uninterrupted):
    kinds = [(r["step"], r["kind"]) for r in records(uninterrupted)]
    assert kinds == [
        (3, "train"),
        (5, "eval"),
        (6, "train"),
        (9, "train"),
        (10, "eval"),
        (12, "train"),
        (12, "eval"),
    ]
    train, evaluated, *_, last, _ = records(uninterrupted)
    assert set(train) == {
        *("step", "kind", "loss", "accuracy", "gradient_norm", "learning_rate", "flip_rate")
    }
    assert set(evaluated) == {"step", "kind", "loss", "accuracy", "accuracy_top5"}
    # That of the third step and of the last of twelve, which a cosine leads to 0 after that.
    for record, steps in ((train, 2), (last, 11)):
        rate = 0.01 * (1 + math.cos(math.pi * steps / 12)) / 2
        assert record["learning_rate"] == pytest.approx(rate, rel=1e-5)
    # Two layers of 3 * 3 * 4 * 8 and 3 * 3 * 4 * 16 weights in two groups: shares of whole weights.
    assert 0 < train["flip_rate"] < 0.5
    flipped = train["flip_rate"] * 9 * 4 * (8 + 16)
    assert flipped == pytest.approx(round(flipped), abs=1e-9)
    assert json.loads((uninterrupted / "config.json").read_text())["model"]["width"] == 8
    times = [json.loads(line) for line in (uninterrupted / "times.jsonl").read_text().splitlines()]
    assert [(r["step"], r["kind"]) for r in times] == kinds
    rates = [r["images_per_second"] * r["seconds_per_step"] for r in times if r["kind"] == "train"]
    assert rates == pytest.approx([32] * 4)
    assert all(r["seconds"] > 0 for r in times if r["kind"] == "eval")


def test_tensorboard_shows_layers_and_examples(uninterrupted):
    (path,) = (uninterrupted / "tensorboard").glob("events.out.tfevents.*")
    values = {
        (event.step, value.tag): value
        for event in event_files.events(path.read_bytes())
        for value in event.summary.value
    }
    train = records(uninterrupted)[0]
    for name in ("loss", "learning_rate", "gradient_norm", "flip_rate"):
        assert values[3, f"train/{name}"].simple_value == pytest.approx(train[name])
    # The share of all weights is the mean of the layers' over their weights.
    first, second = (values[3, f"train/flip_rate/block{stage}_1/conv"].simple_value for stage in (1, 2))
    assert train["flip_rate"] == pytest.approx((first + 2 * second) / 3)
    assert values[3, "train/images_per_second"].simple_value > 0
    assert 0 <= values[5, "eval/zero_inputs/block2_1/conv"].simple_value < 1
    slopes = values[5, "eval/block1_1/act/negative_slope"].histo
    assert (slopes.num, sum(slopes.bucket)) == (8, 8)
    # 16 images in four rows of four, two lines of text below each.
    picture = values[12, "eval/predictions"].image
    assert (picture.width, picture.height) == (4 * (96 + 16), 4 * (96 + 16 + 26))


def test_a_program_of_64_bit_types_trains_the_same(uninterrupted, tmp_path):
    with jax.enable_x64(True):
        loop.train(CONFIG, str(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


class Crash(Exception):
    pass


@pytest.mark.parametrize("step", [2, 7, 8, 11])
def test_a_crashed_run_goes_on_as_if_nothing_had_happened(uninterrupted, tmp_path, monkeypatch, step):
    whole = batches.train_batches

    def crashing(*args, first_step, **kwargs):
        for number, batch in enumerate(whole(*args, first_step=first_step, **kwargs), first_step):
            if number == step:
                raise Crash
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(batches, "train_batches", crashing)
        with pytest.raises(Crash):
            loop.train(CONFIG, str(tmp_path))
    loop.train(CONFIG, str(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_signal_saves_that_very_step(uninterrupted, tmp_path, monkeypatch, number, evaluating):
    """It comes in training at step 7, or in the evaluation after step 10, which a new start repeats."""
    name = "eval_batches" if evaluating else "train_batches"
    whole = getattr(batches, name)
    calls = []

    def signalling(*args, **kwargs):
        calls.append(None)
        # The second evaluation is that of step 10; batches are taken 2 steps ahead of their use.
        sends_at = (0 if len(calls) == 2 else None) if evaluating else 7 + 2 - 1
        for position, batch in enumerate(whole(*args, **kwargs)):
            if position == sends_at:
                os.kill(os.getpid(), number)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(batches, name, signalling)
        with pytest.raises(interrupt.Interrupted, match=f"at step {10 if evaluating else 7} of 12"):
            loop.train(CONFIG, str(tmp_path))
    assert signal.getsignal(number) is not None
    assert checkpoint.load_variables(str(tmp_path))[2] == (10 if evaluating else 7)
    loop.train(CONFIG, str(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_stays_as_it_is(uninterrupted, capsys):
    before = (uninterrupted / "metrics.jsonl").read_text()
    loop.train(CONFIG, str(uninterrupted))
    assert (uninterrupted / "metrics.jsonl").read_text() == before
    assert "resuming from step 12" in capsys.readouterr().out
    with pytest.raises(UserError, match="is at step 12, past the 6 asked for"):
        loop.train(dataclasses.replace(CONFIG, num_steps=6), str(uninterrupted))


def test_evaluation_of_a_checkpoint_is_that_of_the_run(uninterrupted):
    values = evaluation.evaluate(CONFIG, str(uninterrupted))
    assert values["count"] == 66
    last = records(uninterrupted)[-1]
    for name in ("accuracy", "accuracy_top5"):
        assert values[name] == last[name]


def test_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, repository):
    """`kill -9` from outside, at whatever moment; the same command again."""
    command = [
        sys.executable,
        *("-m", "ftbnn_jax.main", f"--config={repository / 'configs' / 'quickstart.py'}"),
        *("--config.num_steps=60", "--config.eval_every=30", "--config.checkpoint_every=6"),
        *("--config.log_every=2", "--config.model.width=8", "--config.model.stem_features=8"),
        *("--config.model.blocks=(1,1)", "--config.batch_size=16"),
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    runs = {name: tmp_path / name for name in ("whole", "killed")}
    whole = [*command, f"--workdir={runs['whole']}"]
    subprocess.run(whole, env=environment, check=True, capture_output=True, timeout=300)
    killed = [*command, f"--workdir={runs['killed']}"]
    for reach in (14, 34):
        with subprocess.Popen(killed, env=environment, stdout=subprocess.DEVNULL) as process:
            deadline = time.time() + 120
            while process.poll() is None and time.time() < deadline:
                metrics = runs["killed"] / "metrics.jsonl"
                if metrics.exists() and any(r["step"] >= reach for r in records(runs["killed"])):
                    break
                time.sleep(0.02)
            process.kill()
    subprocess.run(killed, env=environment, check=True, capture_output=True, timeout=300)
    assert_same_run(runs["killed"], runs["whole"])


@pytest.mark.parametrize(
    ("fields", "names", "message"),
    [
        ({"pixel_mean": (74.0,)}, None, r"pixel_mean=\(73\.0,\), here it is \(74\.0,\); use that value"),
        ({"image_size": 16}, None, "config.image_size=8, here it is 16"),
        ({}, tuple("1023456789"), "other classes, or in another order: number 0 is '0' there, '1' here"),
    ],
)
def test_what_a_checkpoint_was_not_trained_for_is_not_evaluated(
    uninterrupted, monkeypatch, fields, names, message
):
    whole = sets.open_split(CONFIG, train=False)
    other = dataclasses.replace(whole, class_names=names or whole.class_names)
    monkeypatch.setattr(sets, "open_split", lambda config, **_: other)
    with pytest.raises(UserError, match=rf"--workdir=.*: was trained with .*{message}"):
        evaluation.evaluate(dataclasses.replace(CONFIG, **fields), str(uninterrupted))


def test_classes_in_another_order_are_told_on_resuming_and_get_another_classifier(
    uninterrupted, tmp_path, monkeypatch, capsys
):
    whole = sets.open_split

    def reordered(config, train, workdir):
        split = whole(config, train=train)
        return dataclasses.replace(split, class_names=split.class_names[::-1])

    monkeypatch.setattr(sets, "open_split", reordered)
    with contextlib.suppress(interrupt.Interrupted), monkeypatch.context() as patch:
        patch.setattr(interrupt.StopRequest, "reached", lambda self: True)
        loop.train(CONFIG, str(uninterrupted))
    assert capsys.readouterr().err == (
        f"warning: {uninterrupted}/checkpoints/12: was trained with other classes, or in another order: "
        "number 0 is '0' there, '9' here; the training goes on with the latter\n"
    )
    loop.train(dataclasses.replace(CONFIG, start_from=str(uninterrupted), num_steps=1), str(tmp_path))
    text = "classifier of 10 classes replaced by a new one (other classes, or in another order: number"
    assert f"{text} 0 is '0' there, '9' here); 16 of 18 parameters taken" in capsys.readouterr().out


def test_a_second_training_in_one_directory_ends_at_once(uninterrupted):
    before = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}
    message = rf"--workdir={uninterrupted}: is in use by process {os.getpid()} on "
    with lock.held(str(uninterrupted)), pytest.raises(UserError, match=message):
        loop.train(CONFIG, str(uninterrupted))
    assert {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()} == before


def strict_records(workdir) -> list[dict]:
    """Without the NaN and Infinity that Python's own reader would let pass."""
    return [
        json.loads(line, parse_constant=pytest.fail)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def test_diverged_weights_are_not_saved(tmp_path):
    """The first step makes weights of 1e30, all finite; with them no loss or gradient is."""
    config = dataclasses.replace(CONFIG, learning_rate=1e30, checkpoint_every=1, schedule="constant")
    message = "step 2: loss or gradient is not finite; stopped, there is no checkpoint yet"
    with pytest.raises(UserError, match=message):
        loop.train(config, str(tmp_path))
    assert not checkpoint.exists(str(tmp_path))
    strict_records(tmp_path)


def test_a_directory_in_which_diverged_weights_were_saved_is_not_stuck(
    uninterrupted, tmp_path, monkeypatch
):
    """Earlier versions left it so: the weights in the checkpoint of step 8 give no finite loss."""

    def unasked(run, step):
        scale = 1e30 if step == 8 else 1
        params = jax.tree.map(lambda x: x * scale, run.state.params)
        run.checkpoints.save(run.state.replace(params=params), step)
        if step == 8:
            raise Crash

    def mark_as_old():
        (path,) = (tmp_path / "checkpoints" / "8" / "experiment").glob("metadata")
        saved = json.loads(path.read_text())
        assert saved.pop("proven") is True
        path.write_text(json.dumps(saved))

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop._Run, "_save", unasked)
        loop.train(CONFIG, str(tmp_path))
    with pytest.raises(UserError, match=r"step 8: the loss is nan, since the training has diverged"):
        evaluation.evaluate(CONFIG, str(tmp_path))
    # One that gave a finite loss when it was saved is not given up for what has changed since.
    with pytest.raises(UserError, match=r"step 9: .* finite with the weights of .*/8; undo what"):
        loop.train(CONFIG, str(tmp_path))
    mark_as_old()
    message = "step 9: loss or gradient is not finite; stopped, rolled back to the one of step 5"
    with pytest.raises(UserError, match=message):
        loop.train(CONFIG, str(tmp_path))
    assert (tmp_path / "checkpoints_damaged" / "8").is_dir()
    loop.train(CONFIG, str(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("part", ["params", "collections", "opt_state"])
def test_what_is_saved_is_finite(uninterrupted, tmp_path, monkeypatch, part):
    """Batch statistics and the optimizer's state are not what a loss shows, and are asked as well."""
    whole = loop._Run._save

    def overflown(run, step):
        value = jax.tree.map(lambda x: x * np.inf if x.ndim else x, getattr(run.state, part))
        run.state = run.state.replace(**({part: value} if step == 8 else {}))
        whole(run, step)

    monkeypatch.setattr(loop._Run, "_save", overflown)
    message = r"step (8: weights or statistics are|9: loss or gradient is) not finite; .* step 5"
    with pytest.raises(UserError, match=message):
        loop.train(CONFIG, str(tmp_path))
    assert checkpoint.load_variables(str(tmp_path))[2] == 5


def test_an_evaluation_without_a_finite_loss_ends_the_run(tmp_path, monkeypatch):
    whole = evaluation.run
    calls = []

    def overflowing(*args):
        calls.append(None)
        found = whole(*args)
        return evaluation.Evaluated({**found.values, "loss": np.inf}) if len(calls) == 2 else found

    monkeypatch.setattr(evaluation, "run", overflowing)
    message = "step 10: the evaluation's loss is inf; stopped, rolled back to the one of step 8"
    with pytest.raises(UserError, match=message):
        loop.train(CONFIG, str(tmp_path))
    assert checkpoint.load_variables(str(tmp_path))[2] == 8
    assert [r["step"] for r in strict_records(tmp_path) if r["kind"] == "eval"] == [5]


def test_an_evaluation_without_a_readable_image_costs_no_step(uninterrupted, tmp_path, monkeypatch):
    whole = batches.eval_batches

    def unreadable(*args, **kwargs):
        for batch in whole(*args, **kwargs):
            yield {**batch, "weight": 0 * batch["weight"]}

    with monkeypatch.context() as patch:
        patch.setattr(batches, "eval_batches", unreadable)
        with pytest.raises(
            UserError, match=r"config\.eval_split='': none of the images is readable.* 66"
        ):
            loop.train(CONFIG, str(tmp_path))
    assert checkpoint.load_variables(str(tmp_path))[2] == 5
    loop.train(CONFIG, str(tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_the_best_step_named_is_the_one_that_is_kept(tmp_path, monkeypatch, capsys):
    """Two steps are equally good; a stop interrupts an evaluation, which comes after the next start."""
    accuracies = iter([0.5, 0.5, 0.25])
    values = {"loss": 1.0, "accuracy_top5": 1.0, "count": 66}
    stops = []

    def run(*args):
        if len(stops) == 1:
            stops.append(os.kill(os.getpid(), signal.SIGTERM))
            return None
        stops.append(None)
        return evaluation.Evaluated({**values, "accuracy": next(accuracies)})

    monkeypatch.setattr(evaluation, "run", run)
    with pytest.raises(interrupt.Interrupted, match="at step 10 of 12"):
        loop.train(CONFIG, str(tmp_path))
    loop.train(CONFIG, str(tmp_path))
    output = capsys.readouterr().out
    assert "best test accuracy" in output and "50.00% at step 10" in output
    assert checkpoint.load_variables(str(tmp_path), "best")[2] == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 3, "kind": "train"}\n{"st\n', r"metrics\.jsonl: line 2 is damaged"),
        ("metrics.jsonl", None, r"metrics\.jsonl: Is a directory"),
        (
            "tensorboard",
            "a file",
            r"tensorboard: cannot be used \(File exists\); the checkpoints are",
        ),
        ("config.json", None, r"config\.json: cannot be used \(Is a directory\)"),
    ],
)
def test_files_of_a_run_that_cannot_be_used_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        loop.train(CONFIG, str(tmp_path))
    assert "\n" not in str(error.value)


def test_learns_a_few_images_by_heart(tmp_path):
    """One batch over and over: the straight-through gradients lead somewhere."""
    config = dataclasses.replace(
        CONFIG,
        model=architectures.small((1, 1), 16, groups=3, downsample="duplicate"),
        train_split="train",
        batch_size=16,
        num_steps=120,
        eval_every=120,
        checkpoint_every=0,
        log_every=20,
        augment="none",
        flip=False,
    )
    few = sets.open_split(config, train=True)
    few = sets.ArraySplit(few.images[:16], few.labels[:16], few.class_names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "open_split", lambda config, **_: few)
        loop.train(config, str(tmp_path))
    train = [r for r in records(tmp_path) if r["kind"] == "train"]
    assert train[-1]["accuracy"] == 1.0
    assert train[-1]["loss"] < 0.1 < train[0]["loss"]


def test_real_images_train_and_resume(tfds_data_dir, tmp_path):
    """The mission's own recipe (random crops) at a small size, on CIFAR-10 through TFDS."""
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(
            architectures.derived(18, 5), blocks=(1, 1), width=12, stem_features=8
        ),
        dataset="cifar10",
        data_dir=str(tfds_data_dir),
        eval_split="test[:40]",
        augment="resized_crop",
        image_size=32,
        batch_size=8,
        pixel_mean=config_lib.IMAGENET_MEAN,
        pixel_std=config_lib.IMAGENET_STD,
        num_steps=4,
        checkpoint_every=2,
    )
    loop.train(config, str(tmp_path / "whole"))
    # Stopped before step 3, of which the run knows nothing when it goes on from step 2.
    whole = batches.train_batches

    def until_step_3(*args, last_step, **kwargs):
        yield from whole(*args, last_step=3, **kwargs)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "train_batches", until_step_3)
        with pytest.raises(Crash):
            loop.train(config, str(tmp_path / "resumed"))
    loop.train(config, str(tmp_path / "resumed"))
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
