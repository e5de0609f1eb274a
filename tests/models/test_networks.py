import inspect
from importlib.resources import files

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.models import networks

# Weights, image size and channels of each network with 10 classes.
NETWORKS = {
    "digits-cnn": (57_110, 8, 1),
    "small-cnn": (312_202, 28, 1),  # published with TRADES and MMA
    "lenet5-v1": (51_902, 28, 1),
    "lenet5-madry": (3_274_634, 28, 1),
    "lenet5-advertorch": (648_226, 28, 1),
    "resnet-18": (11_173_962, 32, 3),
    "resnet-18-pyautoattack": (11_173_962, 32, 3),
    "resnet-20": (272_474, 32, 3),
    "wrn-34-10": (46_160_474, 32, 3),
    "resnet-50": (23_528_522, 32, 3),
    "preact-resnet-18": (11_171_146, 32, 3),
    "wrn-28-10": (36_479_194, 32, 3),  # published with wide residual networks
    "wrn-70-16": (266_796_506, 32, 3),  # published with Gowal et al. 2020
    "wrn-normfree": (692_128, 32, 3),
    "contrast-cnn": (465_290, 28, 1),
    "convnext": (27_827_818, 32, 3),
    "vit": (21_669_514, 224, 3),
    "vgg-11": (128_807_306, 32, 3),  # torchvision's 132,863,336 with 10 classes instead of 1000
}
BIG = {"wrn-28-10", "wrn-34-10", "wrn-70-16", "vgg-11", "resnet-50"}
"""Built without memory for their weights."""


def weights(network):
    return sum(parameter.numel() for parameter in network.parameters())


def conv(before, after, size, bias=True):
    return before * after * size**2 + (after if bias else 0)


def fc(before, after):
    return before * after + after


def test_the_table_covers_the_registry():
    assert set(NETWORKS) == set(registry.MODELS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_factory_has_the_common_arguments(name):
    known = inspect.signature(registry.resolve("model", name)).parameters
    assert known["classes"].default == 10
    assert known["channels"].default == NETWORKS[name][2]


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_and_shapes(name):
    count, size, channels = NETWORKS[name]
    with torch.device("meta" if name in BIG else "cpu"):
        network = networks.build(name, classes=10, channels=channels)
    assert network.training
    assert weights(network) == count
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.eval()
    if name in BIG:
        assert network(torch.empty(2, channels, size, size, device="meta")).shape == (2, 10)
        return
    for batch in [1] if size > 32 else [1, 3, 7]:
        x = torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        with torch.no_grad():
            logits = network(x)
        assert logits.shape == (batch, 10)
        assert logits.isfinite().all()
        assert torch.equal(x, before)


def test_counts_by_hand():
    small = conv(1, 32, 3) + conv(32, 32, 3) + conv(32, 64, 3) + conv(64, 64, 3) + fc(1024, 200) + fc(200, 200)
    assert NETWORKS["small-cnn"][0] == small + fc(200, 10)
    assert NETWORKS["lenet5-madry"][0] == conv(1, 32, 5) + conv(32, 64, 5) + fc(3136, 1024) + fc(1024, 10)
    assert NETWORKS["lenet5-v1"][0] == conv(1, 6, 5) + conv(6, 16, 5) + conv(16, 120, 5) + fc(120, 10)
    assert NETWORKS["lenet5-advertorch"][0] == conv(1, 32, 3) + conv(32, 64, 3) + fc(3136, 200) + fc(200, 10)
    assert NETWORKS["digits-cnn"][0] == conv(1, 16, 3) + conv(16, 32, 3) + fc(512, 100) + fc(100, 10)
    assert NETWORKS["vgg-11"][0] == 132_863_336 - fc(4096, 1000) + fc(4096, 10)


def test_normfree_count_by_formula():
    def scaled(before, after, size):
        return conv(before, after, size) + after  # with a gain per kernel

    def block(before, after):
        shortcut = scaled(before, after, 1) if before != after else 0
        return scaled(before, after, 3) + scaled(after, after, 3) + shortcut + 1

    stages = [block(before, after) + block(after, after) for before, after in ((16, 32), (32, 64), (64, 128))]
    assert NETWORKS["wrn-normfree"][0] == scaled(3, 16, 3) + sum(stages) + fc(128, 10)


def test_contrast_cnn_count_by_formula():
    layers = (conv(1, 32, 7), conv(32, 64, 5), fc(64 * 5 * 5, 256), fc(256, 10))
    assert NETWORKS["contrast-cnn"][0] == sum(layers)


def test_resnet20_count_by_formula():
    def block(before, after):
        main = conv(before, after, 3, bias=False) + conv(after, after, 3, bias=False) + 2 * 2 * after
        return main + (conv(before, after, 1, bias=False) + 2 * after if before != after else 0)

    stem = conv(3, 16, 3, bias=False) + 2 * 16
    stages = [block(before, after) + 2 * block(after, after) for before, after in ((16, 16), (16, 32), (32, 64))]
    assert NETWORKS["resnet-20"][0] == stem + sum(stages) + fc(64, 10)


def test_resnet20_has_twenty_layers_and_two_projections():
    network = networks.ResNet20()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    projections = [module for module in convolutions if module.kernel_size == (1, 1)]
    assert len(convolutions) - len(projections) + 1 == 20
    assert [module.out_channels for module in projections] == [32, 64]
    assert network.blocks(network.stem(torch.rand(1, 3, 32, 32))).shape == (1, 64, 8, 8)


def test_resnet20_block_adds_its_input():
    block = networks.ResNet20().blocks[0]
    nn.init.zeros_(block.second[1].weight)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("name", "last"), [("small-cnn", "classifier.6"), ("resnet-20", "classifier")])
def test_convolutions_start_kaiming_normal(name, last):
    torch.manual_seed(0)
    network = networks.build(name, classes=10, channels=NETWORKS[name][2])
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
            assert module.weight.abs().max() > 3 * (2 / fan_in) ** 0.5  # a uniform start ends at 1.7
    assert isinstance(network.get_submodule(last), nn.Linear)


def test_small_cnn_starts_with_zero_logits_and_can_still_learn():
    torch.manual_seed(0)
    network = networks.build("small-cnn", classes=10, channels=1)
    logits = network(torch.rand(5, 1, 28, 28))
    assert torch.equal(logits, torch.zeros(5, 10))
    F.cross_entropy(logits, torch.arange(5)).backward()
    assert network.classifier[-1].weight.grad.abs().max() > 0
    assert not network.classifier[-1].weight.any()
    assert not network.classifier[-1].bias.any()


def test_small_cnn_drops_half_after_the_first_layer_only():
    network = networks.build("small-cnn", classes=10, channels=1)
    layers = " ".join(type(module).__name__ for module in network.classifier)
    assert layers == "Flatten Linear ReLU Dropout Linear ReLU Linear"
    assert network.classifier[3].p == 0.5
    assert networks.build("small-cnn", classes=10, channels=1, dropout=0.0).classifier[3].p == 0


def test_the_same_seed_gives_the_same_network():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(networks.build("digits-cnn", classes=10, channels=1)[0].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("name", "classes", "channels"),
    [
        ("digits-cnn", 3, 2),
        ("small-cnn", 3, 2),
        ("lenet5-madry", 3, 2),
        ("resnet-18", 100, 3),
        ("resnet-18-pyautoattack", 100, 3),
        ("resnet-20", 100, 2),
        ("wrn-34-10", 100, 3),
        ("vgg-11", 100, 3),
        ("resnet-50", 100, 3),
        ("preact-resnet-18", 100, 3),
        ("wrn-28-10", 100, 3),
        ("wrn-normfree", 100, 1),
    ],
)
def test_other_classes_and_channels(name, classes, channels):
    with torch.device("meta"):
        network = networks.build(name, classes=classes, channels=channels).eval()
        size = NETWORKS[name][1]
        assert network(torch.empty(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("lenet5-advertorch", "classes", 5),
        ("lenet5-advertorch", "channels", 3),
        ("resnet-18", "channels", 1),
        ("resnet-18-pyautoattack", "channels", 1),
        ("wrn-34-10", "channels", 1),
        ("vgg-11", "channels", 1),
        ("resnet-50", "channels", 1),
        ("preact-resnet-18", "channels", 1),
        ("wrn-28-10", "channels", 1),
        ("wrn-70-16", "channels", 1),
    ],
)
def test_fixed_networks_refuse_other_counts(name, what, value):
    counts = {"classes": 10, "channels": NETWORKS[name][2], what: value}
    with pytest.raises(BadInput, match=f"{name} takes {what}=.* only, not {value}; choose another model") as error:
        networks.build(name, **counts)
    assert (error.value.code, error.value.field) == ("unsupported", what)


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"classes": 2.5}, {"channels": 0}, {"channels": True}])
def test_counts_must_be_whole_numbers(wrong):
    with pytest.raises(BadInput) as error:
        networks.build("small-cnn", **{"classes": 10, "channels": 1, **wrong})
    assert error.value.field == next(iter(wrong))


def test_width_is_a_factor_on_the_channels():
    network = networks.build("small-cnn", classes=10, channels=1, width=2)
    convolutions = conv(1, 64, 3) + conv(64, 64, 3) + conv(64, 128, 3) + conv(128, 128, 3)
    assert weights(network) == convolutions + fc(128 * 16, 200) + fc(200, 200) + fc(200, 10) == 711_018


def test_width_is_a_factor_on_the_channels_of_resnet20():
    plain, twice = (networks.build("resnet-20", classes=10, channels=1, width=width) for width in (1, 2))
    shapes = [
        [module.weight.shape[:2] for module in network.modules() if isinstance(module, nn.Conv2d)]
        for network in (plain, twice)
    ]
    doubled = [(2 * after, 2 * before if before > 1 else before) for after, before in shapes[0]]
    assert [tuple(shape) for shape in shapes[1]] == doubled
    assert weights(twice) == 1_084_010
    assert twice(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("network", ["small-cnn", "resnet-20"])
@pytest.mark.parametrize("width", [0, -1, 1.5, "2", True, 17, 10**9])
def test_width_must_be_a_small_whole_number(network, width):
    with pytest.raises(BadInput) as error:
        networks.build(network, classes=10, channels=1, width=width)
    assert str(error.value) == f"width is {width!r}; it must be a whole number from 1 to 16"
    assert (error.value.code, error.value.field) == ("bad-value" if type(width) is int else "bad-type", "width")


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan"), "half"])
def test_dropout_must_be_a_probability(dropout):
    with pytest.raises(BadInput) as error:
        networks.build("small-cnn", classes=10, channels=1, dropout=dropout)
    assert str(error.value) == f"dropout is {dropout!r}; it must be a probability in [0, 1)"
    assert (error.value.code, error.value.field) == ("bad-type" if dropout == "half" else "bad-value", "dropout")


def test_unknown_names_and_arguments_name_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'small-cnn'"):
        networks.build("smallcnn", classes=10, channels=1)
    with pytest.raises(BadInput, match="'small-cnn': 'dropuot'; did you mean 'dropout'") as error:
        networks.build("small-cnn", classes=10, channels=1, dropuot=0.1)
    assert (error.value.code, error.value.field) == ("unknown-name", "dropuot")
    with pytest.raises(BadInput, match="'digits-cnn': 'dropout'; known: channels, classes"):
        networks.build("digits-cnn", classes=10, channels=1, dropout=0.1)


def test_build_for_takes_classes_and_channels_from_the_data():
    images = torch.zeros(2, 3, 8, 8)
    assert networks.build_for("digits-cnn", images, 4)(images).shape == (2, 4)
    for arguments, code, field in (({"channels": 3}, "unused", "channels"), ({}, "bad-shape", "images")):
        with pytest.raises(BadInput) as error:
            networks.build_for("small-cnn", images, 4, **arguments)
        assert (error.value.code, error.value.field) == (code, field)


def test_digits_cnn_learns_digits_in_seconds():
    digits = datasets.load("digits")
    torch.manual_seed(0)
    network = networks.build("digits-cnn", classes=10, channels=1)
    assert not any(isinstance(module, nn.Dropout | nn.BatchNorm2d) for module in network.modules())
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(20):
        for batch in torch.randperm(len(digits.train)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(digits.train.images[batch]), digits.train.labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        correct = (network(digits.test.images).argmax(1) == digits.test.labels).sum().item()
    assert correct >= 345  # of 360; five seeds gave 350 to 352


@pytest.mark.data
@pytest.mark.parametrize(("trained", "correct"), [("advtrained", 982), ("clntrained", 984)])
def test_advertorch_checkpoints_classify_mnist(data_root, trained, correct):
    network = networks.build("lenet5-advertorch", classes=10, channels=1).eval()
    path = files("advertorch_examples") / "trained_models" / f"mnist_lenet5_{trained}.pt"
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    test = datasets.load("mnist", data_root).test.take(1000)
    with torch.no_grad():
        assert (network(test.images).argmax(1) == test.labels).sum().item() == correct


def test_the_checkpoint_that_pyautoattack_ships_fits_its_network():
    network = networks.build("resnet-18-pyautoattack", classes=10, channels=3)
    path = files("pyautoattack") / "examples" / "model_test.pt"
    keys = network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
    # In its training each BatchNorm counted every batch once.
    assert len({int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)}) == 1
