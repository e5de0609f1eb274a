"""What is stated around a network: parsing, and resizing as torchvision does it."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from atent_ext.core import around
from atent_ext.core.around import Resizing
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import NORMALISATIONS, Normalisation


@pytest.mark.parametrize(("height", "width", "size", "crop"), [(10, 14, 7, 6), (8, 8, 20, None), (9, 12, None, 5)])
def test_resizing_is_torchvisions(height, width, size, crop):
    images = torch.rand(2, 3, height, width)
    resizing = Resizing(size=size, crop=crop)
    expected = images if size is None else functional.resize(images, [size], antialias=True)
    expected = expected if crop is None else functional.center_crop(expected, [crop])
    found = resizing.plan(images.shape[1:]).of(images)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert resizing.shape(images.shape[1:]) == tuple(expected.shape[1:])


def test_texts_of_options():
    assert around.parse() == around.Around()
    parsed = around.parse(normalisation="imagenet", output="logits", resize="224", resize_inside="{size: 9, crop: 8}")
    assert parsed.normalisation == NORMALISATIONS["imagenet"]
    assert (parsed.output, parsed.resize, parsed.resize_inside) == (
        "logits",
        Resizing(size=224),
        Resizing(size=9, crop=8),
    )
    assert around.parse(mean="0.5,0.25", std="1,2").normalisation == Normalisation(mean=[0.5, 0.25], std=[1, 2])


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"normalisation": "imagnet"}, "bad-value", "normalisation"),
        ({"mean": "0.5"}, "missing", "std"),
        ({"std": "0.5"}, "missing", "mean"),
        ({"mean": "0.5", "std": "0.5", "normalisation": "none"}, "conflict", "normalisation"),
        ({"mean": "0.5,0.5", "std": "1"}, "bad-value", "std"),
        ({"mean": "half", "std": "1"}, "bad-value", "mean"),
        ({"mean": "0", "std": "0"}, "bad-value", "std"),
        ({"resize": "big"}, "bad-value", "resize"),
        ({"resize": "0"}, "bad-value", "resize"),
        ({"resize_inside": "{}"}, "bad-value", "resize_inside"),
    ],
)
def test_texts_that_are_refused(given, code, field):
    with pytest.raises(BadInput) as error:
        around.parse(**given)
    assert (error.value.code, error.value.field) == (code, field)


@pytest.mark.parametrize(
    ("shape", "code"), [((20,), "unsupported"), ((1, 800), "unsupported"), ((3, 4, 9), "bad-value")]
)
def test_inputs_that_cannot_be_resized(shape, code):
    with pytest.raises(BadInput) as error:
        Resizing(crop=5).plan(shape)
    assert (error.value.code, error.value.field) == (code, "resize")
