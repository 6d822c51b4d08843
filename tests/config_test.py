"""What a config can hold, how it is overridden, and what is said of files and values that are wrong."""

import dataclasses
import json

import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.spec import ResNetSpec

CONFIG = TrainConfig(architectures.small((1, 1), 8), pixel_mean=(1.0,), pixel_std=(2.0,))
_NUMBERS = {
    (cls, field.name): field.type
    for cls in (TrainConfig, ResNetSpec)
    for field in dataclasses.fields(cls)
    if field.type in (int, float, tuple[int, ...], tuple[float, ...])
}


CONFIG_FROM_DATA = dataclasses.replace(CONFIG, pixel_mean=(), pixel_std=()).from_data


def _changed(**values) -> TrainConfig:
    return TrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())) | values)


@pytest.mark.parametrize(("cls", "name"), _NUMBERS)
def test_no_number_can_be_anything_else(cls, name):
    """Of every field, whoever adds one: the wrong type, too much, what float32 does not hold."""
    kind = _NUMBERS[cls, name]
    wrong = ["1", None, True, {}, float("nan"), float("inf"), -float("inf"), 10**400, "9" * 5000, 1e39]
    wrong += [1.5] if kind is int else []
    values = wrong if kind in (int, float) else [1, *((1, value) for value in wrong), (1,) * 1001]
    # An empty tuple has the data say it.
    values += [()] if kind not in (int, float) and name not in CONFIG_FROM_DATA else []
    given = CONFIG if cls is TrainConfig else CONFIG.model
    for value in values:
        with pytest.raises(UserError) as error:
            cls.from_dict({**given.to_dict(), name: value})
        prefix = "config." if cls is TrainConfig else "model."
        assert str(error.value).startswith(f"{prefix}{name}=")
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"seed": -1}, "config.seed=-1: must be a whole number, at least 0 and at most 4294967295"),
        ({"seed": 2**32}, "config.seed=4294967296: must be"),
        (
            {"image_size": 10**9},
            "config.image_size=1000000000: must be a whole number, at least 1 and at",
        ),
        ({"batch_size": 2.0}, "config.batch_size=2.0: must be a whole number"),
        ({"learning_rate": -1e-9}, "config.learning_rate=-1e-09: must be a float32 number, at least 0"),
        ({"label_smoothing": 1}, "config.label_smoothing=1: must be a float32 number, in [0, 1)"),
        # 1 in float32.
        ({"label_smoothing": 1 - 1e-12}, "config.label_smoothing=0.999999999999: must be"),
        (
            {"teacher_temperature": 1e-50},
            "config.teacher_temperature=1e-50: must be a float32 number, pos",
        ),
        (
            {"schedule_boundaries": (0.5, 1)},
            "config.schedule_boundaries=(0.5, 1): must be a tuple of 1 to",
        ),
        ({"schedule_boundaries": (0.5, 0.5)}, "config.schedule_boundaries=(0.5, 0.5): must ascend"),
        (
            {"pixel_std": (1, 0)},
            "config.pixel_std=(1, 0): must be a tuple of 0 to 4 float32 numbers, each",
        ),
        ({"log_every": 2**31 - 1}, "config.log_every=2147483647: images are counted"),
        ({"flip": 1}, "config.flip=1: must be one of True, False"),
        ({"dataset": 3}, "config.dataset=3: must be text"),
        ({"schedule": ["cosine"]}, "config.schedule=('cosine',): must be one of cosine, multistep"),
        ({"stages": 3}, "config.stages=3: must be"),
        ({"stages": {"a": 3}}, "config.stages={'a': 3}: must be"),
        ({"model": 3}, "model=3: must be the fields of a network"),
        ({"model": {"widht": 3}}, "model.widht: no such field"),
        ({"no": 1}, "config.no: no such key; the nearest is config."),
    ],
)
def test_a_value_that_is_wrong_is_named_with_what_would_do(values, found):
    with pytest.raises(UserError) as error:
        _changed(**values)
    assert str(error.value).startswith(found)


@pytest.mark.parametrize("fields", [None, 3, [1], {"seed": 1}])
def test_what_is_no_config_at_all(fields):
    with pytest.raises(UserError, match="must be"):
        TrainConfig.from_dict(fields)


def test_the_ends_of_ranges_are_taken_and_whole_numbers_become_real_ones():
    config = _changed(seed=2**32 - 1, learning_rate=0, schedule_factor=1, pixel_mean=[1, -2.5])
    assert (config.seed, config.learning_rate, config.pixel_mean) == (2**32 - 1, 0.0, (1.0, -2.5))
    assert [type(v) for v in (config.learning_rate, *config.pixel_mean)] == [float] * 3
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.fixture
def file(tmp_path):
    """Writes a config file; returns its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "config.py"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


_GOOD = """
from ftbnn_jax import config
from ftbnn_jax.nn import architectures

def get_config(width="8"):
    stages = {"one": {"start_from": "", "num_steps": 5}}
    return config.make(architectures.small((1, 1), int(width)), learning_rate=1, stages=stages)
"""


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=7", lambda c: c.seed, 7),
        ("learning_rate=0.5", lambda c: c.learning_rate, 0.5),
        ("flip=false", lambda c: c.flip, False),
        ("dataset=1", lambda c: c.dataset, "1"),
        ("data_dir=", lambda c: c.data_dir, ""),
        # A tuple takes the place of the one that is there, not its end.
        ("model.blocks=(3,)", lambda c: c.model.blocks, (3,)),
        ("model.blocks=2, 2", lambda c: c.model.blocks, (2, 2)),
        # Names need no quotes.
        ("loggers=csv", lambda c: c.loggers, ("csv",)),
        ("loggers=tensorboard, csv", lambda c: c.loggers, ("tensorboard", "csv")),
        ("loggers=('wandb',)", lambda c: c.loggers, ("wandb",)),
        ("loggers=", lambda c: c.loggers, ()),
        ("stages.one.num_steps=9", lambda c: c.stages["one"]["num_steps"], 9),
    ],
)
def test_an_override_takes_the_place_of_a_value(file, override, read, expected):
    assert read(config_lib.load(file(_GOOD), [override])) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=many", "config.seed='many': must be a whole number"),
        ("seed=1e3", "config.seed=1000.0: must be a whole number"),
        ("seed=", "config.seed='': must be"),
        ("model.blocks=2", "model.blocks=2: must be a tuple of 1 to 10 whole numbers"),
        ("model.blocks=(2,", "model.blocks='(2,': must be a tuple"),
        ("model.blocks=" + "(" * 10_000, "model.blocks='(((((((((("),
        ("learning_rate=nan", "config.learning_rate='nan': must be"),
        (
            "loggers=csv,tensorbord",
            "config.loggers=('csv', 'tensorbord'): must be a tuple of some of tensorboard, csv, wandb",
        ),
        (
            "loggers=csv,csv",
            "config.loggers=('csv', 'csv'): must be a tuple of some of tensorboard, csv, ",
        ),
        ("loggers=3", "config.loggers=3: must be a tuple of some of tensorboard, csv, wandb"),
        ("loggers=(['csv'],)", "config.loggers=(('csv',),): must be a tuple of some of"),
        ("flip=1", "config.flip=1: must be one of True, False"),
        ("model.widht=1", "config.model.widht: no such key; the nearest is config.model.width"),
        ("model=1", "config.model=1: has fields of its own, which can be overridden: blocks, width"),
        ("=1", "config.: no such key"),
    ],
)
def test_an_override_that_does_not_fit_is_named(file, override, message):
    with pytest.raises(UserError) as error:
        config_lib.load(file(_GOOD), [override])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.seed"], r"--config\.seed: is written --config\.seed=VALUE"),
        (["--config.seed", "--json"], r"--config\.seed: is written --config\.seed=VALUE"),
        (["--config.seed=1", "--json", "--config.seed=1"], r"--config\.seed: given 2 times"),
        (["--config.seed=1", "--config.seed", "2"], r"--config\.seed: given 2 times"),
    ],
)
def test_an_override_without_a_value_or_with_two(arguments, message):
    with pytest.raises(UserError, match=message):
        config_lib.split_overrides(arguments)


def test_overrides_are_told_from_other_arguments():
    arguments = ["--config", "x.py", "--config.seed", "1", "--config.label_smoothing", "-1"]
    arguments += [
        "--json",
        "--config.data_dir",
        "a=b",
        "--config.model.blocks=(1,)",
        "--config.dataset=",
    ]
    assert config_lib.split_overrides(arguments) == (
        ["seed=1", "label_smoothing=-1", "data_dir=a=b", "model.blocks=(1,)", "dataset="],
        ["--config", "x.py", "--json"],
    )


@pytest.mark.parametrize(
    ("content", "argument", "message"),
    [
        ("raise SystemExit(3)", "", "SystemExit: 3"),
        ("raise ValueError", "", "ValueError: ValueError"),
        ("raise BaseException('two\\nlines')", "", "BaseException: two"),
        ("def get_config(): return None", "", "config=None: must be the fields"),
        ("def get_config(): return {'seed': 1}", "", r"config\.model: must be given"),
        (
            "def get_config(): return {'model': {}, 'sed': 1}",
            "",
            r"config\.sed: .* nearest is config\.seed",
        ),
        ("", "", "has no function get_config"),
        ("get_config = 3", "", "TypeError: 'int' object is not callable"),
        ("def get_config(a): return a", "", "TypeError: .*missing 1 required"),
        (
            _GOOD.replace('width="8"', "").replace("int(width)", "8"),
            ":9",
            "TypeError: .*takes 0 positional",
        ),
        ("x = 'é'".encode("latin-1"), "", "SyntaxError"),
        (bytes(range(256)), "", "SyntaxError"),
    ],
)
def test_a_file_that_holds_no_config_is_one_line(file, content, argument, message):
    path = file(content)
    with pytest.raises(UserError, match=message) as error:
        config_lib.load(path + argument)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)


def test_ctrl_c_in_a_config_file_is_no_mistake_of_it(file):
    with pytest.raises(KeyboardInterrupt):
        config_lib.load(file("raise KeyboardInterrupt"))


def test_a_config_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "good.py").write_text(_GOOD)
    assert config_lib.load("~/good.py:4").model.width == 4
    assert config_lib.load(f"file://{tmp_path}/good.py").model.width == 8
    for path, message in (
        (str(tmp_path), "no such config file"),
        ("~/god.py", "god.py: no such config file; the nearest is .*/good.py"),
        ("~nobody123/x.py", "no home directory ~nobody123"),
        ("foo://x.py", "must be file:///PATH"),
    ):
        with pytest.raises(UserError, match=message):
            config_lib.load(path)


def test_a_shipped_config_has_a_name(tmp_path, monkeypatch):
    """Its path in a clone is one as well, in every directory; a file of that path goes before it."""
    monkeypatch.chdir(tmp_path)
    for name in ("derived18_g5", "derived18_g5.py", "configs/derived18_g5", "configs/derived18_g5.py"):
        assert config_lib.load(f"{name}:90").model == architectures.derived(18, 5, 90)
        assert config_lib.load(name).model == architectures.derived(18, 5, 135)
    (tmp_path / "derived18_g5.py").write_text(_GOOD)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "derived18_g1.py").write_text(_GOOD)
    for own in ("derived18_g5.py:4", "configs/derived18_g1.py:4"):
        assert config_lib.load(own).model.width == 4
    assert config_lib.load("derived18_g5:90").model == architectures.derived(18, 5, 90)


def test_a_config_can_begin_with_a_shipped_one(file):
    path = file(
        "from ftbnn_jax.configs import baseline\n"
        "def get_config():\n"
        "    config = baseline.get_config()\n"
        "    config.num_epochs = 3\n"
        "    return config\n"
    )
    found = config_lib.load(path)
    assert (found.model, found.num_epochs) == (architectures.baseline(), 3)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("quickstrat", "quickstart"),
        ("configs/quickstrat.py", "configs/quickstart.py"),
        ("derived44_g4.py:90", "derived44_g"),
        ("onw.py", "own.py"),
        ("there/onw.py", "there/other.py"),
        ("elsewhere/quickstart", ""),
        ("__init__", ""),
        ("configs", ""),
    ],
)
def test_the_nearest_config_is_named(tmp_path, monkeypatch, written, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(_GOOD)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "other.py").write_text(_GOOD)
    with pytest.raises(UserError) as error:
        config_lib.load(written)
    message = f"{written.partition(':')[0]}: no such config file"
    assert str(error.value).startswith(f"{message}; the nearest is {meant}" if meant else message)
