"""What stands around a network, and is part of what is attacked: normalisation, resizing, the output of the logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch.nn.functional as F
import yaml
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Normalisation, Section, StatedNormalisation, explain
from atent_ext.core.schema import normalisation as parse_normalisation

Pixels = Annotated[int, Field(ge=1, le=4096)]


class Resizing(Section):
    """Of images (N, C, H, W): the shorter side to `size` pixels, then the middle `crop` x `crop` pixels; None: neither.

    Sizes are reached by bilinear interpolation, antialiased where images become smaller, as torchvision's Resize.
    """

    size: Pixels | None = None
    crop: Pixels | None = None

    @model_validator(mode="after")
    def _does_something(self) -> "Resizing":
        if self.size is None and self.crop is None:
            raise ValueError("neither size nor crop is given; give one of them")
        return self

    def __str__(self) -> str:
        return " and ".join(
            text
            for text, given in (
                (f"resized to {self.size} (shorter side, bilinear)", self.size),
                (f"cut to the middle {self.crop} x {self.crop}", self.crop),
            )
            if given
        )

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (C, H, W) of resized images of the shape (C, H, W). Raises BadInput as `plan`."""
        plan = self.plan(shape)
        sides = shape[1:] if plan.sides is None else plan.sides
        return (shape[0], *(sides if plan.window is None else (part.stop - part.start for part in plan.window)))

    def plan(self, shape: Sequence[int]) -> "Plan":
        """What is done to images (C, H, W).

        Raises BadInput for inputs without height and width, and for images that are too small.
        """
        if len(shape) != 3:
            message = f"inputs {tuple(shape)} have no height and width that could be resized; leave it out"
            raise BadInput(message, code="unsupported", field="resize")
        height, width = shape[1:]
        short, sides = min(height, width), None
        if self.size is not None and self.size != short:
            height, width = sides = (int(self.size * height / short), int(self.size * width / short))
        if self.crop is None:
            return Plan(sides, sides is not None and min(sides) < short, None)
        top, left = round((height - self.crop) / 2), round((width - self.crop) / 2)
        if self.crop > min(height, width):
            message = f"the middle {self.crop} x {self.crop} cannot be cut out of {height} x {width}; give a size, too"
            raise BadInput(message, code="bad-value", field="resize")
        window = (slice(top, top + self.crop), slice(left, left + self.crop))
        return Plan(sides, sides is not None and min(sides) < short, window)


@dataclass(frozen=True)
class Plan:
    """A resizing of images of one shape. sides: (H, W) that they are scaled to. window: what is cut out. None: not."""

    sides: tuple[int, int] | None
    antialias: bool
    window: tuple[slice, slice] | None

    def of(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W) resized."""
        if self.sides is not None:
            images = F.interpolate(images, self.sides, mode="bilinear", antialias=self.antialias)
        return images if self.window is None else images[:, :, self.window[0], self.window[1]]


class Around(Section):
    """What is stated of a network's surroundings.

    normalisation: of images in front of it, None if nothing is said. output: the name of its logits among several
    results. resize: the test images, before the threat model, whose eps is one of resized images. resize_inside: by
    the network, inside the threat model.
    """

    normalisation: StatedNormalisation = None
    output: str | None = None
    resize: Resizing | None = None
    resize_inside: Resizing | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """What is given, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


def parse(
    normalisation: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    output: str | None = None,
    resize: str | None = None,
    resize_inside: str | None = None,
) -> Around:
    """The surroundings in texts of options. mean, std: numbers with commas. resize: 224, or '{size: 256, crop: 224}'.

    normalisation: as in `schema.normalisation`. Raises BadInput for a text that is none, and for mean or std alone or
    beside a normalisation.
    """
    stated = None if normalisation is None else parse_normalisation(normalisation)
    if mean is not None or std is not None:
        if normalisation is not None or mean is None or std is None:
            other = "std" if std is None else "mean" if mean is None else "normalisation"
            message = "--mean and --std state a normalisation together, without --normalisation; give both"
            raise BadInput(message, code="missing" if other != "normalisation" else "conflict", field=other)
        stated = _of_numbers(mean, std)
    given = {"resize": resizing(resize, "resize"), "resize_inside": resizing(resize_inside, "resize_inside")}
    return Around(normalisation=stated, output=output, **given)


def _of_numbers(mean: str, std: str) -> Normalisation:
    try:
        numbers = {name: [float(part) for part in text.split(",")] for name, text in (("mean", mean), ("std", std))}
        return Normalisation.model_validate(numbers)
    except ValidationError as error:
        message = f"--mean {mean} --std {std} ({explain(error, Normalisation)}); give a number per channel for both"
        raise BadInput(message, code="bad-value", field="std") from None
    except ValueError:
        message = f"--mean {mean[:50]} --std {std[:50]} are no numbers; write 0.485,0.456,0.406, one per channel"
        raise BadInput(message, code="bad-value", field="mean") from None


def resizing(value: str | int | Resizing | None, field: str = "resize") -> Resizing | None:
    """A resizing from a text, or from the size alone. Raises BadInput for anything else."""
    if value is None or isinstance(value, Resizing):
        return value
    try:
        read = yaml.safe_load(value) if isinstance(value, str) else value
        return Resizing.model_validate(read if isinstance(read, dict) else {"size": read})
    except (ValidationError, yaml.YAMLError) as error:
        reason = explain(error, Resizing) if isinstance(error, ValidationError) else "it is not YAML"
        message = f"{field} is {str(value)[:100]!r} ({reason}); say 224, or '{{size: 256, crop: 224}}'"
        raise BadInput(message, code="bad-value", field=field) from None


def refuse(around: Around, why: str, names: Sequence[str] = tuple(Around.model_fields)) -> None:
    """Raise BadInput if one of the `names` is stated. why: the start of the message."""
    for name in names:
        if name in around.stated:
            message = f"{why}; leave out --{name.replace('_', '-')}"
            raise BadInput(message, code="unused", field=name)
