"""The networks against a second implementation, in PyTorch, float64, written from the paper's text.

Section 2 and Fig. 1, 3 and 4 describe the blocks, section 3 the straight-through estimator. PyTorch
supplies its own convolution, batch norm, pooling and automatic differentiation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ftbnn_jax.nn import resnet
from ftbnn_jax.nn.spec import ResNetSpec

torch = pytest.importorskip("torch", reason="needs PyTorch, which ftbnn_jax itself does not")
functional = torch.nn.functional

_CLASSES = 5
_NETS = {
    # 17x17 images meet every odd size: 17, 9, 5 and 3 positions.
    "baseline": (
        17,
        ResNetSpec(blocks=(1, 2), width=6, stem_features=6),
    ),
    "derived": (
        9,
        ResNetSpec(
            blocks=(2, 1),
            width=7,
            groups=3,
            stem_features=4,
            stem_kernel=3,
            stem_stride=1,
            stem_activation="prelu",
            stem_pool=False,
            bridge=True,
            downsample="duplicate",
        ),
    ),
    "two-valued signs, PReLU, uneven groups": (
        8,
        ResNetSpec(
            blocks=(1, 1),
            width=5,
            groups=2,
            stem_features=5,
            stem_kernel=3,
            stem_stride=1,
            stem_pool=False,
            stem_activation="relu",
            activation="prelu",
            stage_end_activation="prelu",
            sign="two_valued",
            ste_bound=0.8,
        ),
    ),
}


class _TorchNet:
    """The network as PyTorch functions of float64 tensors that are named and laid out as flax's are.

    `margin` becomes the smallest distance at which any value stayed from a jump: of a sign or an
    activation's slope at 0, and of the straight-through gradient at the clip. While float32's rounding
    is far below it, both implementations are on the same side everywhere, and so comparable.
    """

    def __init__(self, net, params, stats, train):
        self.net, self.params, self.stats, self.train = net, params, stats, train
        self.margin = np.inf

    def __call__(self, x):
        net, p = self.net, self.params
        kernel = p["stem/conv/kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, stride=net.stem_stride, padding=net.stem_kernel // 2)
        x = self._activation("stem", net.stem_activation, self._batch_norm("stem/bn", x))
        if net.stem_pool:
            x = functional.max_pool2d(x, 3, stride=2, padding=1)
        zeros_are_kept = net.sign == "three_valued"
        if net.bridge:
            y = self._binary_conv("bridge", x, 1, 1, zeros_are_kept or net.stem_activation == "relu")
            x = self._activation("bridge", net.activation, self._batch_norm("bridge/bn", y))
        previous = net.activation if net.bridge else net.stem_activation
        for stage, count in enumerate(net.blocks, start=1):
            for block in range(1, count + 1):
                name, halve = f"block{stage}_{block}", stage > 1 and block == 1
                shortcut, stride, groups = x, 1, net.groups
                if halve and net.downsample == "duplicate":
                    stride, groups = 2, max(2, groups)
                    x = torch.cat([x, x], 1)
                    shortcut = functional.avg_pool2d(x, 3, stride=2, padding=1)
                elif halve:
                    stride = 2
                    shortcut = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
                    kernel = p[f"{name}/shortcut_conv/kernel"].permute(3, 2, 0, 1)
                    shortcut = functional.conv2d(shortcut, kernel)
                    shortcut = self._batch_norm(f"{name}/shortcut_bn", shortcut)
                y = self._binary_conv(name, x, stride, groups, zeros_are_kept or previous == "relu")
                y = self._batch_norm(f"{name}/bn", y) + shortcut
                previous = net.stage_end_activation if block == count else net.activation
                x = self._activation(name, previous, y)
        return x.mean((2, 3)) @ p["head/kernel"] + p["head/bias"]

    def _keep_away(self, x, *jumps, but_zeros=False):
        for jump in jumps:
            distances = (x.detach() - jump).abs()
            if but_zeros:
                distances = distances[x.detach() != 0]
            self.margin = min(self.margin, distances.min().item())

    def _batch_norm(self, name, x):
        # The running statistics are copied: PyTorch updates them in place.
        return functional.batch_norm(
            x,
            self.stats[f"{name}/mean"].clone(),
            self.stats[f"{name}/var"].clone(),
            self.params[f"{name}/scale"],
            self.params[f"{name}/bias"],
            training=self.train,
            eps=self.net.batch_norm_epsilon,
        )

    def _activation(self, name, kind, x):
        if kind == "none":
            return x
        self._keep_away(x, 0)
        if kind == "relu":
            return functional.relu(x)
        negative = self.params[f"{name}/act/negative_slope"]
        y = functional.prelu(x, negative)
        if kind == "fprelu":
            positive = self.params[f"{name}/act/positive_slope"].reshape(1, -1, 1, 1)
            y = torch.where(x > 0, positive * x, y)
        return y

    def _binary_conv(self, name, x, stride, groups, zeros_are_kept):
        bound = self.net.ste_bound

        def straight_through(values, signs):
            clipped = values.clamp(-bound, bound)
            return clipped + (signs - clipped).detach()

        def upper_or_lower(values):
            return torch.where(values > 0, 1.0, -1.0).to(values.dtype)

        # Exact zeros are ReLU's, and as exact in float32; zero padding follows binarisation.
        self._keep_away(x, 0, but_zeros=True)
        self._keep_away(x, bound, -bound)
        signs = straight_through(x, torch.sign(x) if zeros_are_kept else upper_or_lower(x))
        kernels = [self.params[f"{name}/conv/kernel_{g}"].permute(3, 2, 0, 1) for g in range(groups)]
        parts = torch.split(signs, [k.shape[1] for k in kernels], 1)
        outputs = [
            functional.conv2d(part, straight_through(k, upper_or_lower(k)), stride=stride, padding=1)
            for part, k in zip(parts, kernels, strict=True)
        ]
        return torch.cat(outputs, 1)


def _variables(model, images, rng):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    draw = {
        # Latent weights on both sides of the clip, 1.2.
        "kernel": lambda shape: rng.standard_normal(shape),
        "bias": lambda shape: 0.3 * rng.standard_normal(shape),
        "mean": lambda shape: np.zeros(shape),
        "var": lambda shape: np.ones(shape),
        "scale": lambda shape: rng.uniform(0.5, 1.5, shape),
        "negative": lambda shape: rng.uniform(0.1, 0.6, shape),
        "positive": lambda shape: rng.uniform(0.8, 1.5, shape),
    }

    def values(path, leaf):
        return draw[path[-1].key.partition("_")[0]](leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


def _flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def _tensors(tree, requires_grad=False):
    return {
        path: torch.tensor(np.asarray(leaf), dtype=torch.float64, requires_grad=requires_grad)
        for path, leaf in _flat(tree).items()
    }


@pytest.mark.parametrize("name", _NETS)
def test_logits_and_gradients_are_those_of_a_second_implementation(name):
    size, net = _NETS[name]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, size, size, 3)).astype(np.float32)
    cotangent = rng.standard_normal((3, _CLASSES)).astype(np.float32)
    model = resnet.ResNet(net, _CLASSES)
    variables = _variables(model, images, rng)
    # In inference the running statistics must not be those of these images.
    stats = jax.tree.map(
        lambda leaf: (leaf + rng.uniform(0.1, 0.5, leaf.shape)).astype(np.float32),
        variables["batch_stats"],
    )

    @jax.jit
    def run(params, stats):
        def train(params):
            variables = {"params": params, "batch_stats": stats}
            logits, _ = model.apply(variables, images, True, mutable=["batch_stats"])
            return jnp.sum(logits * cotangent), logits

        gradients, logits = jax.grad(train, has_aux=True)(params)
        return logits, gradients, model.apply({"params": params, "batch_stats": stats}, images)

    logits, gradients, inference_logits = run(variables["params"], stats)

    images_nchw = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    params = _tensors(variables["params"], requires_grad=True)
    for train, actual in ((True, logits), (False, inference_logits)):
        reference = _TorchNet(net, params, _tensors(stats), train)
        expected = reference(images_nchw)
        assert reference.margin > 1e-5, "unlucky draw: choose another seed"
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
        if train:
            (expected * torch.tensor(cotangent)).sum().backward()

    gradients = _flat(gradients)
    assert set(gradients) == set(params)
    for path, gradient in gradients.items():
        expected = params[path].grad.numpy()
        largest = np.abs(expected).max()
        assert largest > 1e-3, path
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * largest, err_msg=path)
