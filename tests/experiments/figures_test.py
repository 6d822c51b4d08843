import json

import jax
import numpy as np
import pytest
import runs

from ftbnn_jax import budget, published
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import discrepancy, figure2, figures, members
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.resnet import ResNet


def _lines(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def test_curves_are_means_over_seeds(tmp_path):
    runs.write(tmp_path / "a" / "seed0", [0.2, 0.4], losses=[2.0])
    runs.write(tmp_path / "a" / "seed1", [0.4, 0.8, 0.9], losses=[4.0])
    runs.write(tmp_path / "b", [0.1])
    groups = [figures.read_group(str(tmp_path / name)) for name in "ab"]
    _, evaluated = figures.curves(groups, "accuracy").axes
    # The step that one seed alone has reached is left out.
    expected = {"a": [[10, 30], [20, 60]], "b": [[10, 10]]}
    assert {k: np.round(v).tolist() for k, v in _lines(evaluated).items()} == expected
    trained, _ = figures.curves(groups, "loss").axes
    assert _lines(trained) == {"a": [[10, 3.0]]}


def test_accuracy_is_drawn_over_the_total_budget(tmp_path):
    runs.write(tmp_path / "quickstart", [0.3, 0.9])
    (axis,) = figures.accuracy_over_budget([figures.read_group(str(tmp_path / "quickstart"))]).axes
    net = architectures.small(blocks=(2, 2), width=48)
    total = budget.count(ResNet(net, 10), (8, 8, 1), memory=False).total
    ((x, y),) = axis.containers[0].lines[0].get_xydata()
    assert (x, y) == (pytest.approx(total / 1e6), pytest.approx(90))


def test_too_many_runs_for_one_figure_are_refused(tmp_path):
    runs.write(tmp_path, [0.5])
    with pytest.raises(UserError, match="11 runs: at most 10"):
        figures.curves([figures.read_group(str(tmp_path))] * 11, "accuracy")


def test_every_row_of_table_3_and_every_evaluation_is_drawn(tmp_path):
    """Ten rows look different, and 30 evaluations have a marker each."""
    groups = []
    for row in published.TABLE3:
        runs.write(tmp_path / row, [i / 30 for i in range(30)], losses=[1.0] * 200)
        groups.append(figures.read_group(str(tmp_path / row)))
    figure = figures.curves(groups, "accuracy")
    lines = figure.axes[1].get_lines()
    assert len(lines) == len(published.TABLE3) == 10
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10
    assert all(line.get_markevery() in (None, 1) and len(line.get_xdata()) == 30 for line in lines)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == list(published.TABLE3)


def test_the_command_writes_png_and_svg(tmp_path, capsys):
    runs.write(tmp_path / "run", [0.5, 0.6], losses=[1.0, 0.5])
    output = tmp_path / "figure"
    assert figures.main(["curves", str(tmp_path / "run"), f"--output={output}"]) == 0
    assert capsys.readouterr().out.split() == [f"{output}.png", f"{output}.svg"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(UserError, match="there is no folder"):
        figures.main(["curves", str(tmp_path / "run"), f"--output={tmp_path}/nope/figure"])


def test_projection_separates_classes_it_was_not_fitted_on():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    features = rng.normal(size=(400, 20)) + 6 * np.eye(20)[labels]
    points = figure2.project(features, labels)
    assert points.shape == (200, 2)
    of = [points[labels[200:] == c] for c in range(3)]
    centres = np.array([p.mean(0) for p in of])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == labels[200:]).mean() > 0.98


def test_discrepancies_follow_their_formulas():
    rng = np.random.default_rng(0)
    b = rng.integers(-9, 10, (5, 4, 4, 3)).astype(np.float32)
    scale = np.array([0.5, 1, 2], np.float32)
    multiplier = np.array([2, 2, 4], np.float32)
    gamma = np.array([1, -2, 3], np.float32)
    inputs = np.full((5, 4, 4, 2), -0.25, np.float32)

    def measured(r, c):
        outputs = {"inputs": inputs, "b": b, "c": c, "r": r, "clipped": b + 2}
        return discrepancy._discrepancies(outputs, scale, multiplier, gamma)

    # A real convolution that is 3 b + 1: standardised it is the same.
    r = 3 * b + 1
    found = measured(r, b - 5)
    expected = {
        "plain": np.abs(2 * b + 1).mean(),
        "relative": np.abs(2 * b + 1).mean() / np.abs(r).mean(),
        "Eq. 2": np.abs(2 * b + 6).mean(),
        "scaled": np.abs((scale - 3) * b - 1).mean(),
        "scaled, relative": np.abs((scale / 4 - 3) * b - 1).mean() / np.abs(r).mean(),
        "one batch norm": np.abs(multiplier * (2 * b + 1)).mean(),
        "one batch norm, Eq. 2": np.abs(multiplier * (2 * b + 6)).mean(),
        "two batch norms": 0,
        "standardised": 0,
        "clipped": 2,
        "one batch norm, root mean square": np.square(multiplier * (2 * b + 1)).mean() ** 0.5,
        "two batch norms, root mean square": 0,
        "one batch norm, Eq. 2, mean square": np.square(multiplier * (2 * b + 6)).mean(),
        "two batch norms, Eq. 2, mean square": 0,
    }
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert found.keys() == discrepancy.DEFINITIONS.keys()
    # One that is -b is as far as can be.
    centred = b - b.mean((0, 1, 2))
    apart = np.abs(2 * centred / centred.std((0, 1, 2)))
    opposite = measured(-b, b)
    assert opposite["standardised"] == pytest.approx(apart.mean(), rel=1e-4)
    assert opposite["two batch norms"] == pytest.approx((np.abs(gamma) * apart).mean(), rel=1e-4)
    squares = np.square(gamma * apart).mean()
    assert opposite["two batch norms, root mean square"] == pytest.approx(squares**0.5, rel=1e-4)
    assert opposite["two batch norms, Eq. 2, mean square"] == pytest.approx(squares, rel=1e-4)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_discrepancy_of_a_trained_network(tmp_path, monkeypatch, activation):
    """Latent weights that are signs already, and inputs too, leave nothing between the two."""
    net = architectures.small(
        (1,), 4, activation=activation, stage_end_activation=activation, head="flatten"
    )
    config = TrainConfig(net, dataset="digits", image_size=8, num_classes=10, pixel_mean=(0.0,))
    config = TrainConfig.from_dict({**config.to_dict(), "pixel_std": (1.0,), "batch_size": 16})
    variables = ResNet(net, 10).init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    variables = jax.tree.map(np.array, variables)
    stem = variables["params"]["stem"]
    # Every pixel of the block's input is +1.
    stem["conv"]["kernel"][:] = 0
    stem["bn"]["bias"][:] = 1
    kernel = variables["params"]["block1_1"]["conv"]["kernel_0"]
    kernel[:] = np.where(kernel > 0, 1, -1)
    experiment = {"config": config.to_dict(), "channels": 1, "class_names": list("0123456789")}
    monkeypatch.setattr(
        discrepancy.checkpoint, "load_variables", lambda workdir: (variables, experiment, 1)
    )
    found, features, labels = discrepancy.measure(str(tmp_path), 20)
    assert found["plain"] == found["Eq. 2"] == found["clipped"] == found["scaled"] == 0
    assert features.shape == (20, 4 * 4 * 4)
    assert labels.shape == (20,)
    # Twice the weights: the real sums are twice the binary ones.
    kernel *= 2
    found, _, _ = discrepancy.measure(str(tmp_path), 20)
    assert found["relative"] == pytest.approx(0.5)
    assert found["scaled"] == pytest.approx(0, abs=1e-5)


def test_figure_2_is_made_of_what_has_finished(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, accuracy in (("linear", 0.92), ("relu", 0.99)):
        member = members.Member(name, f"mnist_figure2:{name}", 0)
        folder = tmp_path / name / "seed0"
        runs.write(folder, [accuracy])
        member.finish(str(tmp_path))
        values = dict.fromkeys(discrepancy.DEFINITIONS, 1.25) if name == "relu" else {}
        (folder / "discrepancy.json").write_text(json.dumps(values))
        labels = rng.integers(0, 10, 200)
        np.savez(folder / "features.npz", features=rng.normal(size=(200, 8)), labels=labels)
    assert figure2.main([f"--workdir={tmp_path}", "--report"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert ["linear", "1", "92.00", ""] in rows
    assert ["relu", "1", "99.00", "98.83 ± 0.07"] in rows
    assert ["plain", "|b - r|", "1.25"] in rows
    assert ["published", "not said", "2.41 ± 0.13"] in rows
    assert (tmp_path / "figure2.png").exists() and (tmp_path / "figure2.svg").exists()
