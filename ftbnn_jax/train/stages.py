"""Multi-step training: the stages of a config as runs, each starting from the one before."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ftbnn_jax import config as config_lib
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import disk, distributed, lock
from ftbnn_jax.report import console
from ftbnn_jax.train import checkpoint, distillation, loop, opening


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
      name: its name, "" for the only run of a config without stages.
      config: of the run, without stages.
      workdir: its directory.
    """

    name: str
    config: TrainConfig
    workdir: str


def resolve(config: TrainConfig, workdir: str) -> tuple[Stage, ...]:
    """Returns the runs of a config in the order in which they start from each other.

    Raises:
      UserError: a stage has an impossible field, or they do not follow one another in a line.
    """
    if not config.stages:
        return (Stage("", config, workdir),)
    following: dict[str, str] = {}
    for name, fields in config.stages.items():
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"config.stages: {name!r}: a name of letters, digits and _ would do")
        before = fields.get("start_from", "")
        known = ["", *(other for other in config.stages if other != name)]
        if before not in known or before in following:
            taken = f", {following[before]!r} does as well" if before in following else ""
            raise UserError(
                f'config.stages.{name}.start_from={before!r}: must be the stage before, "" in the '
                f"first one{taken}; there are {', '.join(config.stages)}"
            )
        following[before] = name
    stages: list[Stage] = []
    while (before := stages[-1].name if stages else "") in following:
        name = following.pop(before)
        start_from = stages[-1].workdir if stages else config.start_from
        fields = {**config.stages[name], "start_from": start_from}
        stages.append(Stage(name, _stage_config(config, name, fields), _below(workdir, name)))
    if following:
        raise UserError(
            f"config.stages: {', '.join(following.values())} start from each other in a ring"
        )
    return tuple(stages)


def _stage_config(config: TrainConfig, name: str, fields: Mapping[str, Any]) -> TrainConfig:
    base = config.to_dict()
    given = fields.get("model", {})
    model = {**base["model"], **given}
    try:
        for key in given if config.network else ():
            config_lib.check_key(base, f"model.{key}")
        return TrainConfig.from_dict({**base, **fields, "model": model, "stages": {}})
    except UserError as error:
        field = error.where.removeprefix("config.")
        raise UserError(error.what, f"config.stages.{name}.{field}") from error


def _below(workdir: str, name: str) -> str:
    return f"{workdir.rstrip('/')}/{name}"


def train(config: TrainConfig, workdir: str) -> None:
    """Trains all stages of a config that are not finished, as `loop.train` does each.

    A stage that has a checkpoint began when the ones before it were finished: they are passed over.

    Raises:
      UserError: a stage cannot be trained, or a teacher cannot teach; all teachers are looked at before
        anything is trained.
      interrupt.Interrupted: asked to stop, with the state of that step saved.
    """
    stages = resolve(config, workdir)
    begun = [i for i, stage in enumerate(stages) if checkpoint.exists(stage.workdir)]
    stages = stages[max(begun, default=0) :]
    for stage in stages:
        if stage.config.teacher:
            distillation.load(*opening.open_training(stage.config, stage.workdir))
    with contextlib.ExitStack() as stack:
        if config.stages:
            # Each stage holds its own directory as well.
            stack.enter_context(disk.errors_are_told(workdir))
            distributed.on_main(lambda: stack.enter_context(lock.held(workdir)))
            if distributed.is_main():
                loop.write_config(workdir, config)
        for stage in stages:
            if stage.name and distributed.is_main():
                console.print(f"stage {stage.name}, in {stage.workdir}")
            loop.train(stage.config, stage.workdir)
