"""A `ResNetSpec`'s network and its training step as a user of PyTorch would write them."""

from collections.abc import Callable

import numpy as np

from ftbnn_jax import extras
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.host import machine
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops.binary import group_sizes

with extras.named():
    import torch
    from torch import nn
    from torch.nn import functional


class _Sign(torch.autograd.Function):
    """Signs with the clipped straight-through gradient."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= ctx.bound), None


class _BinaryConv(nn.Module):
    def __init__(self, spec, plan):
        super().__init__()
        ins = group_sizes(plan.conv_in_features, plan.groups)
        outs = group_sizes(plan.features, plan.groups)
        self.bound, self.stride, self.ins = spec.ste_bound, plan.stride, ins
        # Equal groups are one convolution; a PyTorch user has no other way to do unequal ones.
        self.equal = len({*zip(ins, outs, strict=True)}) == 1
        shapes = [(plan.features, ins[0])] if self.equal else zip(outs, ins, strict=True)
        self.kernels = nn.ParameterList(
            nn.init.xavier_normal_(torch.empty(o, i, 3, 3), gain=2) for o, i in shapes
        )

    def forward(self, x):
        x = _Sign.apply(x, self.bound)
        kernels = [_Sign.apply(kernel, self.bound) for kernel in self.kernels]
        if self.equal:
            return functional.conv2d(x, kernels[0], None, self.stride, 1, 1, len(self.ins))
        parts = torch.split(x, self.ins, 1)
        pairs = zip(parts, kernels, strict=True)
        return torch.cat([functional.conv2d(p, k, None, self.stride, 1) for p, k in pairs], 1)


class _FPReLU(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.negative = nn.Parameter(torch.ones(features, 1, 1))
        self.positive = nn.Parameter(torch.ones(features, 1, 1))

    def forward(self, x):
        return x * torch.where(x > 0, self.positive, self.negative)


def _activation(name, features):
    return {"none": nn.Identity, "relu": nn.ReLU}.get(
        name, lambda: nn.PReLU(features) if name == "prelu" else _FPReLU(features)
    )()


def _conv_bn(ins, outs, size, stride=1):
    conv = nn.Conv2d(ins, outs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs))


class _BinaryBlock(nn.Module):
    def __init__(self, spec, plan):
        super().__init__()
        self.kind = plan.shortcut
        self.conv = _BinaryConv(spec, plan)
        self.bn = nn.BatchNorm2d(plan.features)
        self.act = _activation(plan.activation, plan.features)
        if self.kind == "conv":
            self.shortcut = _conv_bn(plan.in_features, plan.features, 1)

    def forward(self, x):
        shortcut = x
        if self.kind == "conv":
            pooled = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
            shortcut = self.shortcut(pooled)
        elif self.kind == "duplicate":
            x = torch.cat([x, x], 1)
            shortcut = functional.avg_pool2d(x, 3, 2, 1)
        y = self.bn(self.conv(x))
        return self.act(y if self.kind == "none" else y + shortcut)


class _RealBlock(nn.Module):
    def __init__(self, ins, plan):
        super().__init__()
        layers, width = [], ins
        for features, size, stride in plan.convolutions():
            layers += [_conv_bn(width, features, size, stride)]
            layers += [_activation(plan.inner_activation, features)]
            width = features
        self.main = nn.Sequential(*layers[:-1])
        self.act = _activation(plan.activation, width)
        projects = plan.shortcut == "conv"
        self.shortcut = _conv_bn(ins, width, 1, plan.stride) if projects else nn.Identity()

    def forward(self, x):
        return self.act(self.main(x) + self.shortcut(x))


def make_model(spec: ResNetSpec, num_classes: int, channels: int) -> nn.Module:
    """Returns the network as a PyTorch module of `[N, C, H, W]`."""
    width, kernel = spec.stem_features, spec.stem_kernel
    layers = [
        _conv_bn(channels, width, kernel, spec.stem_stride),
        _activation(spec.stem_activation, width),
    ]
    if spec.stem_pool:
        layers.append(nn.MaxPool2d(3, 2, 1))
    layers += [_BinaryBlock(spec, plan) for plan in spec.plan()]
    for plan in spec.real_plan():
        layers.append(_RealBlock(width, plan))
        width = plan.features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(spec.features, num_classes)]
    return nn.Sequential(*layers)


def make_step(config: TrainConfig, batch: dict[str, np.ndarray], compiled: bool) -> Callable[[], float]:
    """Returns a function that makes one step of Adam on the batch and returns the loss.

    Args:
      config: gives network, batch, precision and learning rate.
      batch: `image`, uint8 `[N, H, W, C]`, and `label`, int32 `[N]`.
      compiled: whether by `torch.compile`.
    """
    torch.set_num_threads(machine.environment_number("OMP_NUM_THREADS", machine.num_cores()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(config.seed)
    model = make_model(config.spec("PyTorch"), config.num_classes, batch["image"].shape[-1])
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
    images = torch.from_numpy(batch["image"]).to(device)
    labels = torch.from_numpy(batch["label"]).long().to(device)
    mean = torch.tensor(config.mean, device=device)
    std = torch.tensor(config.pixel_std, device=device)
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.compute_dtype)

    def loss_of(images, labels):
        x = ((images.float() - mean) / std).permute(0, 3, 1, 2)
        with torch.autocast(device, low, enabled=low is not None):
            return functional.cross_entropy(model(x), labels, label_smoothing=config.label_smoothing)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
