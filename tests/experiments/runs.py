"""Work directories as finished runs leave them."""

import json
import pathlib

from ftbnn_jax import config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def write(path, accuracies, *, experiment="quickstart.py", losses=()):
    """Writes the files of a run that was evaluated every 10 steps, with these results."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.load(str(CONFIGS / experiment)).to_dict()))
    records = [{"step": 10 * i, "kind": "train", "loss": x} for i, x in enumerate(losses, 1)]
    records += [{"step": 10 * i, "kind": "eval", "accuracy": a} for i, a in enumerate(accuracies, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
