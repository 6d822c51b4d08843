"""A network as the straight list of layers that the C program runs, with sizes and memory."""

import dataclasses

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import memory
from ftbnn_jax.deploy.c.described import Convolution, Described, describe
from ftbnn_jax.nn.spec import BinaryConvPlan
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.conv import geometry
from ftbnn_jax.ops.packed import bits

# As in kernels/ftbnn_binary.h: positions convolved at once, and elements touched past the last one.
BLOCK = 4
SLACK = 16


@dataclasses.dataclass(frozen=True)
class Block:
    """One binary block.

    Attributes:
      plan: what it is.
      conv: its convolution.
      x: offset of its input among the values, and `y` of its output.
      signs: offset of the packed signs of its input.
      y: see `x`.
    """

    plan: BinaryConvPlan
    conv: Convolution
    x: int = 0
    y: int = 0
    signs: int = 0

    @property
    def form(self) -> str:
        """The convolution's form, one of `ops.packed.convolution.FORMS`."""
        return self.conv.form

    @property
    def size(self) -> int:
        """Height and width of the input."""
        return self.conv.size

    @property
    def out_size(self) -> int:
        """Height and width of the output."""
        return geometry.output_size(self.size, 3, self.plan.stride, (1, 1))

    @property
    def plane(self) -> int:
        """Words that one bit of every input value takes."""
        return self.size**2 * sum(bits.words_for(i) for i in self.group_inputs)

    @property
    def group_inputs(self) -> tuple[int, ...]:
        """Input channels of each group."""
        return binary.group_sizes(self.plan.conv_in_features, self.plan.groups)

    @property
    def group_outputs(self) -> tuple[int, ...]:
        """Output channels of each group."""
        return binary.group_sizes(self.plan.features, self.plan.groups)

    @property
    def multiply_adds(self) -> int:
        """Binary multiply-adds for one image."""
        pairs = sum(i * o for i, o in zip(self.group_inputs, self.group_outputs, strict=True))
        return 9 * self.out_size**2 * pairs


@dataclasses.dataclass(frozen=True)
class Network:
    """The layers, and how many elements of memory they need.

    Attributes:
      described: what was lowered.
      stem_size: height and width of the stem's convolution's output.
      blocks: the binary blocks in order.
      values: real numbers between the layers.
      signs: words of packed signs.
      scratch: real numbers within one layer.
      windows: words within one layer.
      sums: integers within one layer.
      largest_pair: values of the largest input and output of a layer together.
    """

    described: Described
    stem_size: int
    blocks: tuple[Block, ...]
    values: int
    signs: int
    scratch: int
    windows: int
    sums: int
    largest_pair: int

    @property
    def arena_bytes(self) -> int:
        """Bytes of memory that the program needs beside its weights and its stack."""
        elements = self.values + self.signs + self.scratch + self.windows + self.sums
        # A magic number, a count, and two pointers, whose size and alignment is at most 8.
        return 4 * elements + 40

    @property
    def last_size(self) -> int:
        """Height and width of what reaches the classifier."""
        return self.blocks[-1].out_size


def lower(artifact: artifact_lib.Artifact) -> Network:
    """Lays a network out, one buffer of values in the place of another where a layer allows it.

    Raises:
      UserError: it is none of those that there can be in C; see `described.describe`.
    """
    described = describe(artifact)
    spec, rule = described.spec, described.preprocessing
    half = spec.stem_kernel // 2
    stem_size = geometry.output_size(rule.size, spec.stem_kernel, spec.stem_stride, (half, half))
    blocks = [Block(*both) for both in zip(spec.plan(), described.convolutions, strict=True)]
    # Step 0 is the stem, 1 the pool, 2 packs; block i runs in step 3 + i, and the classifier at the end.
    stem_values = stem_size**2 * spec.stem_features
    values = [memory.Buffer(stem_values, 0, 2)]
    inputs, outputs = [], []
    for i, block in enumerate(blocks):
        step = 3 + i
        inputs.append(len(values) - 1)
        if block.plan.shortcut != "none":
            values[-1] = dataclasses.replace(values[-1], last=step)
        if block.plan.shortcut != "identity":
            values.append(memory.Buffer(block.out_size**2 * block.plan.features, step, step))
        values[-1] = dataclasses.replace(values[-1], last=step + 1)
        outputs.append(len(values) - 1)
    signs = [
        memory.Buffer(block.plane * (2 if block.form == "ternary" else 1), 2 + i, 3 + i)
        for i, block in enumerate(blocks)
    ]
    value_offsets, value_count = memory.place(values)
    sign_offsets, sign_count = memory.place(signs)
    placed = tuple(
        dataclasses.replace(b, x=value_offsets[x], y=value_offsets[y], signs=sign)
        for b, x, y, sign in zip(blocks, inputs, outputs, sign_offsets, strict=True)
    )
    pairs = [b.size**2 * b.plan.in_features + b.out_size**2 * b.plan.features for b in blocks]
    pairs.append(rule.size**2 * rule.channels + stem_values)
    if spec.stem_pool:
        pairs.append(stem_values + blocks[0].size ** 2 * spec.stem_features)
    return Network(
        described=described,
        stem_size=stem_size,
        blocks=placed,
        values=value_count,
        signs=sign_count,
        scratch=_scratch(described, blocks),
        windows=max(_windows(block) for block in blocks),
        sums=max(BLOCK * (block.plan.features + SLACK) for block in blocks),
        largest_pair=max(pairs),
    )


def _scratch(described: Described, blocks: list[Block]) -> int:
    spec, rule = described.spec, described.preprocessing
    row = (rule.size + 2 * (spec.stem_kernel // 2)) * rule.channels
    needed = [spec.stem_kernel * row, spec.stem_features, spec.features]
    needed.append(blocks[0].plan.conv_in_features + SLACK)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        packing = following.plan.conv_in_features + SLACK if following else 0
        needed.append(BLOCK * block.plan.features + max(BLOCK * block.plan.in_features, packing))
    return max(needed)


def _windows(block: Block) -> int:
    position = sum(bits.words_for(i) for i in block.group_inputs)
    window = max(9 * (i // 32) + bits.words_for(9 * (i % 32)) for i in block.group_inputs)
    return 2 * position + 2 * BLOCK * window
