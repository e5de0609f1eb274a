import copy

import pytest
import torch
from problems import OnlyBuffers, small_batch, small_net
from torch import nn

from atent_ext.attacks.advertorch_style import LinfATENTAttack
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.models import networks, speed


def network(name="small-cnn", channels=1):
    with seeded(1):
        model = networks.build(name, classes=10, channels=channels)
        for module in model.modules():
            if isinstance(module, nn.Linear) and not bool(module.weight.any()):
                module.reset_parameters()
            if isinstance(module, nn.BatchNorm2d):  # statistics and weights away from 0 and 1
                for tensor in (module.running_mean, module.bias.data):
                    tensor.normal_(0, 0.2)
                for tensor in (module.running_var, module.weight.data):
                    tensor.uniform_(0.5, 2.0)
    return model


def images(count=6, shape=(1, 28, 28)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(2))


class Viewing(nn.Module):
    """Flattens by `view`, which fails for channels-last activations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.out = nn.Linear(4 * 64, 10)

    def forward(self, x):
        hidden = self.conv(x)
        return self.out(hidden.view(len(x), -1))


class FormatDependent(nn.Module):
    """Its outputs depend on the memory format of its weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3)) * (1.0 if self.conv.weight.is_contiguous() else 1.1)


def test_images_go_to_the_buffers_of_a_network_without_parameters():
    model = OnlyBuffers("meta")
    assert speed.prepare(model, images()).model.norm.running_mean.is_meta
    assert model.seen[0].type == "meta"


def assert_untouched(model, before):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()


# ---- prepare


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("small-cnn", 1, 28), ("resnet-20", 3, 32), ("resnet-18", 3, 32)]
)
@pytest.mark.parametrize("setting", ["plain", "channels-last"])
def test_a_prepared_network_gives_the_same_logits(name, channels, side, setting):
    model = network(name, channels).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = images(4, (channels, side, side))
    prepared = speed.prepare(model, x, setting)
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(x), model(x), rtol=1e-4, atol=1e-4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    left = sum(isinstance(module, nn.BatchNorm2d) for module in prepared.model.modules())
    assert left == (len(norms) if setting == "plain" else 0)
    expected = (f"BatchNorm folded: {len(norms)} of {len(norms)}",) if norms and setting != "plain" else ()
    assert (prepared.speed, prepared.notes) == (setting, (*expected, f"speed: {setting}"))
    assert prepared.folded == bool(expected)
    assert not any(p.requires_grad for p in prepared.model.parameters())
    assert not any(module.training for module in prepared.model.modules())
    channels_last = [
        m.weight.is_contiguous(memory_format=torch.channels_last)
        for m in prepared.model.modules()
        if isinstance(m, nn.Conv2d) and m.in_channels > 1
    ]
    assert all(channels_last) == (setting == "channels-last")
    assert all(p.requires_grad for p in model.parameters())
    assert_untouched(model, before)


def test_a_network_that_cannot_be_traced_keeps_its_norms_with_a_note():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if float(x.detach().sum()) > 0 else -x).mean((2, 3))

    prepared = speed.prepare(Branching(nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10)).eval(), images(3, (1, 8, 8)))
    assert prepared.notes[0].startswith("BatchNorm not folded: ")
    assert prepared.notes[1:] == ("speed: channels-last",)
    assert isinstance(prepared.model, Branching)


def test_a_network_that_cannot_use_channels_last_runs_plainly_with_a_note():
    prepared = speed.prepare(Viewing().eval(), images(3, (1, 8, 8)))
    assert prepared.speed == "plain"
    assert prepared.notes[0].startswith("channels-last not used: RuntimeError: view size is not compatible")


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("small-cnn", 1, 28), ("lenet5-madry", 1, 28), ("resnet-20", 3, 32)]
)
def test_a_kink_of_the_network_is_not_taken_for_a_difference(name, channels, side):
    """Rounding moves some of many images across the kink of a ReLU, which changes their gradients a lot."""
    x = images(128, (channels, side, side))
    for _ in range(2):
        model = network(name, channels).eval()
        assert speed.choose(model, x, "channels-last") == ("channels-last", ())
        assert speed.prepare(model, x).folded == (name == "resnet-20")


class Watching(nn.Module):
    """Records in each forward pass whether cuDNN may use TF32."""

    def __init__(self):
        super().__init__()
        self.convolution, self.seen = nn.Conv2d(1, 10, 3), []

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.seen.append(torch.backends.cudnn.allow_tf32)
        return self.convolution(x).mean((2, 3))


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_outputs_are_compared_without_tf32_and_its_setting_is_restored(monkeypatch, allowed, fails):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    model, x = Watching(), images(3, (1, 8, 8))
    if fails:
        model.convolution = nn.Sequential(nn.Conv2d(2, 10, 3))  # of another number of channels
    chosen, notes = speed.choose(model, x, "channels-last")
    assert chosen == ("plain" if fails else "channels-last")
    assert len(notes) == fails
    assert model.seen
    assert not any(model.seen)
    assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older name alone")
def test_the_newer_setting_of_tf32_is_not_changed():
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        assert speed.choose(network("small-cnn", 1), images(3, (1, 28, 28)), "channels-last") == ("channels-last", ())
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before


def test_gradients_that_vanish_are_noticed_even_if_the_true_ones_are_small():
    class Masking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, x):
            seen = x if self.conv.weight.is_contiguous() else x.detach() + 0 * x
            return 1e-5 * self.conv(seen).mean((2, 3))

    prepared = speed.prepare(Masking().eval(), images(5, (2, 8, 8)))
    assert prepared.speed == "plain"
    assert "input gradients differ for the median image by 1.0e+00" in prepared.notes[0]


def test_a_network_that_draws_at_random_is_not_folded_and_the_random_state_is_restored():
    class Coin(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10)

        def forward(self, x):
            if torch.rand(()) < 0.5:
                x = x.flip(-1)
            return self.norm(self.conv(x)).mean((2, 3))

    state = torch.get_rng_state()
    prepared = speed.prepare(Coin().eval(), images(3, (1, 8, 8)))
    torch.manual_seed(0)
    coins = {float(prepared.model(images(1, (1, 8, 8))).sum()) for _ in range(20)}
    torch.set_rng_state(state)
    assert len(coins) == 2
    assert prepared.notes[0].startswith("BatchNorm not folded: ValueError: the network draws at random")
    assert not prepared.folded


def test_folding_keeps_the_random_state_and_can_be_declined():
    state = torch.get_rng_state()
    assert speed.prepare(network("resnet-20", 3), images(3, (3, 32, 32))).folded
    assert torch.equal(torch.get_rng_state(), state)
    declined = speed.prepare(network("resnet-20", 3), images(3, (3, 32, 32)), fold=False)
    assert (declined.folded, declined.notes) == (False, ("speed: channels-last",))
    assert speed.prepare(network("resnet-20", 3), images(3, (3, 32, 32)), "plain", fold=True).folded


def test_a_network_whose_logits_change_runs_plainly_with_the_difference_in_a_note():
    prepared = speed.prepare(FormatDependent().eval(), 9 * images(3, (2, 8, 8)))
    assert prepared.speed == "plain"
    assert "its logits differ by 1.0e-01, more than 0.001" in prepared.notes[0]


def test_double_precision_has_no_channels_last_kernels():
    prepared = speed.prepare(small_net(), small_batch()[0])
    assert prepared.notes[0] == "channels-last not used: there are no convolutions in float32 or half precision"


def test_a_model_that_cannot_be_copied_is_returned_itself():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one of it")

    model = Single(3, 2)
    prepared = speed.prepare(model, torch.rand(2, 3))
    assert prepared.model is model
    assert prepared.notes == ("not prepared: the model cannot be copied (TypeError: there is only one of it)",)


def test_graphs_need_a_gpu_and_fall_back_to_the_next_simpler_setting(monkeypatch):
    tried = []
    problem = speed._problem

    def watched(model, x, setting):
        tried.append(setting)
        return "no compiler" if setting == "compile" else problem(model, x, setting)

    monkeypatch.setattr(speed, "_problem", watched)
    chosen, notes = speed.choose(network().eval(), images(), "graphs")
    assert (chosen, tried) == ("channels-last", ["graphs", "compile", "channels-last"])
    assert notes == ("graphs not used: CUDA graphs need a GPU", "compile not used: no compiler")


@pytest.mark.integration
def test_a_compiled_network_gives_the_same_logits_and_gradients():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4)).eval()
    prepared = speed.prepare(model, images(4, (1, 8, 8)), "compile")
    assert prepared.notes == ("speed: compile",)
    x = images(4, (1, 8, 8)).requires_grad_()
    for answer in (prepared.model(x), model(x)):
        answer.square().sum().backward()
    torch.testing.assert_close(prepared.model(x), model(x))
    assert list(prepared.model.state_dict()) == list(model.state_dict())


# ---- auto


@pytest.mark.parametrize("fast", ["plain", "channels-last"])
def test_auto_keeps_the_fastest(monkeypatch, fast):
    monkeypatch.setattr(speed, "measure", lambda runs: {name: 0.001 if name == fast else 0.002 for name in runs})
    chosen, notes = speed.choose(network().eval(), images(), "auto")
    assert chosen == fast
    assert notes == (
        f"measured on 6 images: {', '.join(f'{n} {1.0 if n == fast else 2.0} ms' for n in ('plain', 'channels-last'))}",
    )


def test_auto_times_only_settings_that_the_network_can_use(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda runs: dict.fromkeys(runs, 0.001))
    chosen, notes = speed.choose(Viewing().eval(), images(3, (1, 8, 8)), "auto")
    assert chosen == "plain"
    assert notes[0].startswith("channels-last not used: ")
    assert len(notes) == 1
    single = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    single.__deepcopy__ = None  # cannot be called
    assert speed.choose(single, images(3, (1, 8, 8)), "auto")[0] == "plain"


def test_timing_interleaves_calls_and_takes_the_median():
    calls = []
    measured = speed.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b"] * 6
    assert measured.keys() == {"a", "b"}
    assert all(0 <= seconds < 1 for seconds in measured.values())


def test_trying_settings_changes_neither_the_network_nor_the_random_state():
    model = network("resnet-20", 3).train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    speed.choose(model, images(2, (3, 32, 32)), "auto")
    speed.choose(model, images(2, (3, 32, 32)), "channels-last")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert_untouched(model, before)


# ---- the view of an attack


def test_an_attack_runs_on_channels_last_and_the_model_does_not_change():
    model = network().eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    seen = []
    model.features[2].register_forward_hook(
        lambda _, inputs, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    with speed.viewed(model, images(), "channels-last") as view:
        x = images().requires_grad_()
        logits = view(x)
        logits.sum().backward()
    assert all(seen)
    assert bool(x.grad.any())
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(logits, model(images()), rtol=1e-5, atol=1e-5)
    assert not seen[-1]
    assert_untouched(model, before)


@pytest.mark.parametrize("model", [Viewing(), small_net(), nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), lambda x: x])
def test_a_model_that_cannot_use_channels_last_is_attacked_itself(model):
    x = images(3, (1, 8, 8)) if not isinstance(model, type(small_net())) else small_batch()[0]
    with speed.viewed(model, x, "channels-last") as view:
        assert view is model


class Straight(torch.autograd.Function):
    """Rounds, with a straight-through gradient; only its backward pass calls `view`."""

    @staticmethod
    def forward(context, x):
        return x.round()

    @staticmethod
    def backward(context, gradient):
        return gradient.view(-1).view(gradient.shape)


def test_a_backward_pass_that_cannot_use_channels_last_is_noticed_before_the_attack():
    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 10, 3)

        def forward(self, x):
            return self.second(Straight.apply(self.first(x))).mean((2, 3))

    model, x = Rounding().eval(), images(4, (2, 8, 8))
    with speed.viewed(model, x, "channels-last") as view:
        assert view is model
    LinfATENTAttack(model, nb_iter=2).perturb(x, torch.zeros(4, dtype=torch.long))


def test_an_attack_works_under_inference_mode():
    model, x = network().eval(), images(3)
    y = model(x).argmax(1)
    expected = LinfATENTAttack(model, nb_iter=2, generator=torch.Generator().manual_seed(0)).perturb(x, y)
    with torch.inference_mode():
        adversary = LinfATENTAttack(model, nb_iter=2, generator=torch.Generator().manual_seed(0)).perturb(x, y)
    assert torch.equal(adversary, expected)


def test_both_settings_find_the_same_adversaries_up_to_rounding():
    model, x = network().eval(), images(16)
    y = model(x).argmax(1)
    both = [
        LinfATENTAttack(model, eps=0.1, nb_iter=5, generator=torch.Generator().manual_seed(0), speed=setting).perturb(
            x, y
        )
        for setting in ("plain", "channels-last")
    ]
    apart = (both[0] - both[1]).abs() > 1e-5
    assert float(apart.float().mean()) < 0.01  # pixels whose gradient is zero up to rounding


@pytest.mark.parametrize(
    "call",
    [
        lambda name: speed.choose(network(), images(), name),
        lambda name: LinfATENTAttack(network(), speed=name),
    ],
)
def test_an_unknown_setting_is_refused(call):
    with pytest.raises(BadInput, match=r"speed is 'turbo'; .*: plain, channels-last") as error:
        call("turbo")
    assert (error.value.code, error.value.field) == ("unknown-name", "speed")
