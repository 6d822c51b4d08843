"""One record per network: our counts beside the published ones, as JSON and as tables."""

import concurrent.futures
import dataclasses
import gc
import multiprocessing
import os
from collections.abc import Sequence
from typing import Any

from ftbnn_jax import networks, published
from ftbnn_jax.budget.count import Budget, count
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError

# Fewer nets than this are counted before a second process has started.
_WORTH_PROCESSES = 4
_MAX_PROCESSES = 4


@dataclasses.dataclass(frozen=True)
class Record:
    """A network and its budget.

    Attributes:
      name: as in "derived44_g5:90".
      config: the experiment whose network it is.
      image_size: height and width of the images.
      channels: of the images.
      budget: what was counted.
    """

    name: str
    config: TrainConfig
    image_size: int
    channels: int
    budget: Budget

    @property
    def is_published(self) -> bool:
        """Whether it has the image size, channels and classes of the published numbers."""
        shape = (self.image_size, self.channels, self.config.num_classes)
        return shape == (published.IMAGE_SIZE, 3, published.NUM_CLASSES)

    @property
    def row(self) -> published.Row | None:
        """The net's row in the left half of Table 4, if it has one."""
        key = published.table4_specs().get(self.config.model)
        return published.TABLE4[key] if key and self.is_published else None

    @property
    def paper_bridge(self) -> float | None:
        """BOPs in M that the published row holds for the bridge."""
        return published.bridge_bops(self.config.model) if self.row else None

    @property
    def published_total_macs(self) -> float | None:
        """The net's number in the right half of Table 4, in M, if it has one."""
        name = published.total_macs_specs().get(self.config.model)
        return published.TOTAL_MACS[name] if name and self.is_published else None

    def deviations(self) -> dict[str, float] | None:
        """Returns ours minus published, in M; None for a net that is not in Table 4.

        The published BOPs are compared without the paper's bridge term with our blocks' BOPs.
        """
        if self.row is None:
            return None
        b, row = self.budget, self.row
        return {
            "flops": b.flops / 1e6 - row.flops,
            "bops_blocks": b.bops_blocks / 1e6 - (row.bops - self.paper_bridge),
            "params": b.params / 1e6 - row.params,
            "total": b.total / 1e6 - row.total,
        }


def count_configs(
    configs: Sequence[tuple[str, TrainConfig]],
    image_size: int | None = None,
    channels: int | None = None,
    memory: bool = True,
) -> list[Record]:
    """Counts the networks of several experiments.

    Args:
      configs: names and experiments.
      image_size: height and width of the images; None for each config's own.
      channels: of the images; None for as many as a config has pixel means, 3 where it has none.
      memory: whether to count activation memory too.

    Returns:
      One record a config, in their order.

    Raises:
      UserError: a config leaves the number of classes to the data.
    """
    for name, config in configs:
        try:
            config.check_classes()
        except UserError as error:
            raise error.within(f"{name}: ") from error
    jobs = [
        (name, config, image_size or config.image_size, channels or len(config.pixel_mean) or 3, memory)
        for name, config in configs
    ]
    processes = min(os.cpu_count() or 1, len(jobs) // 2, _MAX_PROCESSES)
    if len(jobs) < _WORTH_PROCESSES or processes < 2:
        return [_count(job) for job in jobs]
    # A JAX process has threads, and such a process must not be forked.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(_count, jobs))


def _count(job: tuple[str, TrainConfig, int, int, bool]) -> Record:
    name, config, size, channels, memory = job
    net = networks.make(dataclasses.replace(config, compute_dtype="float32"))
    # A trace is made of many small objects that live until its end: looking for garbage among them
    # again and again takes almost half of the time.
    gc.disable()
    try:
        budget = count(net, (size, size, channels), memory=memory)
    finally:
        gc.enable()
    return Record(name, config, size, channels, budget)


def to_json(record: Record, layers: bool) -> dict[str, Any]:
    """Returns a record as values that JSON can hold.

    Operations, `params` and totals are in M, `real_params`, `binary_params` and `state` are numbers of
    elements, and bytes are bytes.

    Args:
      record: the network.
      layers: whether to list its layers, whose numbers are all in units.
    """
    b, row = record.budget, record.row
    fields = {
        "name": record.name,
        "image_size": record.image_size,
        "flops": b.flops / 1e6,
        "macs": b.macs / 1e6,
        "bops_blocks": b.bops_blocks / 1e6,
        "bops_bridge": b.bops_bridge / 1e6,
        "bops": b.bops / 1e6,
        "binary_macs": b.binary_macs / 1e6,
        "params": b.params / 1e6,
        "total": b.total / 1e6,
        "bops_share": _share(b.bops / 64, b.total),
        "total_macs": b.total_macs / 1e6,
        "real_params": b.real_params,
        "binary_params": b.binary_params,
        "state": b.state,
        "bytes_unpacked": b.bytes_unpacked,
        "bytes_packed": b.bytes_packed,
        "activation_bytes": b.activation_bytes,
        "published": dataclasses.asdict(row) if row else None,
        "published_bridge": record.paper_bridge,
        "published_total_macs": record.published_total_macs,
        "deviation": record.deviations(),
    }
    if layers:
        fields["layers"] = [
            dataclasses.asdict(layer)
            | {"after_relu": layer.after_relu, "total": layer.total, "bytes_packed": layer.bytes_packed}
            for layer in b.layers
        ]
    return fields


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
