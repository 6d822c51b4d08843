"""Images of the evaluation with what the network makes of them, as one picture."""

import dataclasses
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Sides of an image in the picture and of its frame, in pixels, and lines of text below.
_SIDE, _FRAME, _LINE = 96, 4, 13
# Blue and vermilion, which colour-blind readers tell apart (Okabe and Ito, 2008).
_RIGHT, _WRONG = "#0072b2", "#d55e00"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Some images of an evaluation.

    Attributes:
      images: uint8 `[n, H, W, C]`, as the network saw them.
      labels: int32 `[n]`.
      predictions: int32 `[n]`.
    """

    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray


def draw(examples: Examples, class_names: Sequence[str]) -> np.ndarray:
    """Draws images in rows, each in a blue frame where it is recognised, else in an orange one.

    Below stands the class that the network names and, where that is another, "not" and the right one.

    Args:
      examples: at least one.
      class_names: in the order of the labels; one without a name in Latin letters is called by
        its number.

    Returns:
      uint8 `[H', W', 3]`.
    """
    columns = math.ceil(math.sqrt(len(examples.labels)))
    rows = math.ceil(len(examples.labels) / columns)
    width, height = _SIDE + 4 * _FRAME, _SIDE + 4 * _FRAME + 2 * _LINE
    picture = Image.new("RGB", (columns * width, rows * height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(10)

    def name(label):
        given = class_names[label] if label < len(class_names) else ""
        # Pillow's own font has the letters of ASCII alone: "für" is shown as "fur".
        plain = unicodedata.normalize("NFKD", given).encode("ascii", "ignore").decode()
        return plain.strip() or str(label)

    def fitting(text):
        while pen.textlength(text, font) > _SIDE and len(text) > 1:
            text = text.removesuffix("…")[:-1] + "…"
        return text

    for number, (image, label, predicted) in enumerate(
        zip(examples.images, examples.labels, examples.predictions, strict=True)
    ):
        left, top = number % columns * width + _FRAME, number // columns * height + _FRAME
        right = label == predicted
        color, side = _RIGHT if right else _WRONG, _SIDE + 2 * _FRAME
        pen.rectangle((left, top, left + side - 1, top + side - 1), fill=color)
        picture.paste(_square(image), (left + _FRAME, top + _FRAME))
        lines = [name(predicted)] if right else [name(predicted), f"not {name(label)}"]
        for line, text in enumerate(lines):
            pen.text((left + _FRAME, top + side + line * _LINE), fitting(text), color, font)
    return np.asarray(picture)


def _square(image: np.ndarray) -> Image.Image:
    """Enlarges or shrinks an image; of channels that are no three colours, the first is shown."""
    pixels = image if image.shape[-1] == 3 else image[..., 0]
    small = max(image.shape[:2]) <= _SIDE
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    return Image.fromarray(pixels).convert("RGB").resize((_SIDE, _SIDE), how)
