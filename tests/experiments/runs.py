"""Work directories as finished runs leave them."""

import json

from ftbnn_jax import config


def write(path, accuracies, *, experiment="configs/quickstart.py", losses=()):
    """Writes the files of a run that was evaluated every 10 steps, with these results."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.load(experiment).to_dict()))
    records = [{"step": 10 * i, "kind": "train", "loss": x} for i, x in enumerate(losses, 1)]
    records += [{"step": 10 * i, "kind": "eval", "accuracy": a} for i, a in enumerate(accuracies, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
