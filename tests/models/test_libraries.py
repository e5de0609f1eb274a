"""Networks of other libraries: variants, parity with the library's own, what is refused without it."""

import pytest
import torch
from torch import nn

from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.models import networks


def build(name, **arguments):
    return networks.build(name, classes=10, channels=3, **arguments)


def on_meta(name, **arguments):
    with torch.device("meta"):
        return build(name, **arguments)


SILU = {"preact-resnet-18": "DMPreActResNet", "wrn-28-10": "DMWideResNet", "wrn-34-10": "DMWideResNet"}
"""RobustBench's classes of the networks with SiLU."""


@pytest.mark.parametrize("name", SILU)
def test_silu_is_a_variant_with_deepminds_names(name):
    network = on_meta(name, activation="silu")
    assert type(network).__name__ == SILU[name]
    assert any(isinstance(module, nn.SiLU) for module in network.modules())
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
    assert "logits.weight" in network.state_dict()
    assert not {"mean", "std"} & network.state_dict().keys()  # the normalisation is no part of a checkpoint
    assert type(on_meta(name)).__name__ != SILU[name]


def test_silu_is_robustbenchs_swish():
    from robustbench.model_zoo.architectures.dm_wide_resnet import CIFAR100_MEAN

    network = build("preact-resnet-18", activation="silu", statistics="cifar100").eval()
    assert network.mean.flatten().tolist() == pytest.approx(CIFAR100_MEAN)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    network(x).logsumexp(1).sum().backward()  # the gradient of their own Swish fails on today's torch
    assert x.grad.isfinite().all()
    values = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(network.relu(values), values * torch.sigmoid(values))


def test_the_variants_of_preact_resnet_18_are_robustbenchs():
    plain, rice = on_meta("preact-resnet-18"), on_meta("preact-resnet-18", bn_before_fc=True, out_shortcut=True)
    assert {name.partition(".")[0] for name in rice.state_dict().keys() - plain.state_dict().keys()} == {"bn"}
    assert rice.out_shortcut


def test_timms_networks_are_timms():
    timm = pytest.importorskip("timm")  # which cannot build on the device "meta"
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4, in_chans=1).eval()
    ours = networks.build("vit", classes=10, channels=1, size="tiny", patch=4, image_size=32).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    theirs = timm.create_model("convnext_tiny", num_classes=10)
    assert build("convnext").state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "extra"),
    [("wrn-28-10", "robustbench"), ("preact-resnet-18", "robustbench"), ("convnext", "timm"), ("vit", "timm")],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, name, extra):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda wanted, *rest: None if wanted == extra else find(wanted, *rest)
    )
    with pytest.raises(MissingExtra) as error:
        build(name)
    assert (error.value.code, error.value.field) == ("missing-extra", extra)
    assert f"atent-ext[{extra}]" in str(error.value)


@pytest.mark.parametrize(
    ("name", "arguments", "code", "field"),
    [
        ("wrn-28-10", {"activation": "gelu"}, "unknown-name", "activation"),
        ("wrn-70-16", {"activation": "silu", "statistics": "imagenet"}, "unknown-name", "statistics"),
        ("convnext", {"size": "huge"}, "unknown-name", "size"),
        ("vit", {"size": "huge"}, "unknown-name", "size"),
        ("vit", {"image_size": 30}, "bad-value", "image_size"),
        ("vit", {"image_size": 4096}, "bad-value", "image_size"),
        ("vit", {"patch": 64}, "bad-value", "patch"),
    ],
)
def test_other_variants_are_refused(name, arguments, code, field):
    with pytest.raises(BadInput) as error:
        on_meta(name, **arguments)
    assert (error.value.code, error.value.field) == (code, field)
