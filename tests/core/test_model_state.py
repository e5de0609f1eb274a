import pytest
import torch
from problems import OnlyBuffers
from torch import nn

from atent_ext.core.model_state import device_of, evaluating, frozen, is_training, kept, seeded


class Broken(Exception):
    pass


class NeverTold(nn.Sequential):
    """A model whose `train()` does something else, as models with a frozen backbone have it."""

    def train(self, mode=True):
        raise AssertionError("the mode of each module is set, train() is not called")


def network():
    shared = nn.Dropout(0.5)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), shared, nn.Sequential(nn.BatchNorm1d(4), shared), nn.Linear(4, 2)
    )


def modes_of(model):
    return [module.training for module in model.modules()]


def test_is_training_finds_any_part():
    model = network().eval()
    assert not is_training(model)
    model[3][0].train()
    assert is_training(model)
    assert not is_training(torch.relu)


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_gives_every_module_its_own_mode_back(fails):
    model = network().train()
    model[1].eval()
    model[3].training = False  # itself in eval mode, its parts not
    before = modes_of(model)
    assert len(set(before)) == 2
    try:
        with evaluating(model):
            assert not is_training(model)
            if fails:
                raise Broken
    except Broken:
        assert fails
    assert modes_of(model) == before


def test_evaluating_nests_and_reaches_dropout_and_batchnorm():
    model = network().train()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    mean = model[1].running_mean.clone()
    with evaluating(model):
        with evaluating(model):
            inner = model(x)
        assert torch.equal(model(x), inner)
    assert torch.equal(model[1].running_mean, mean)
    assert all(modes_of(model))


def test_evaluating_does_not_call_train():
    model = NeverTold(nn.Dropout(0.5))
    with evaluating(model):
        assert modes_of(model) == [False, False]
    assert modes_of(model) == [True, True]


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_gives_each_parameter_its_own_flag_back(fails):
    model = network()
    model[0].bias.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    assert before.count(False) == 2
    try:
        with frozen(model):
            assert not any(p.requires_grad for p in model.parameters())
            assert not model(torch.ones(2, 3)).requires_grad
            if fails:
                raise Broken
    except Broken:
        assert fails
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_frozen_lets_gradients_reach_the_input():
    model = nn.Linear(3, 1)
    x = torch.ones(1, 3, requires_grad=True)
    with frozen(model):
        model(x).sum().backward()
    assert torch.equal(x.grad, model.weight.detach())
    assert model.weight.grad is None


@pytest.mark.parametrize("manager", [evaluating, frozen, kept])
def test_a_plain_function_has_nothing_to_switch(manager):
    with manager(torch.relu):
        assert torch.relu(torch.tensor(-1.0)) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_seeded_draws_alike_and_leaves_the_global_state(fails):
    state = torch.get_rng_state()
    draws = []
    for _ in range(2):
        try:
            with seeded(7):
                draws.append(torch.rand(3))
                if fails:
                    raise Broken
        except Broken:
            assert fails
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], torch.rand(3, generator=torch.Generator().manual_seed(7)))
    with seeded(8):
        assert not torch.equal(torch.rand(3), draws[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is seeded at once")
def test_seeding_leaves_nothing_for_accelerators_that_are_not_there():
    queued = len(torch.cuda._queued_calls)
    with seeded(7):
        pass
    assert len(torch.cuda._queued_calls) == queued


@pytest.mark.parametrize("fails", [False, True])
def test_kept_undoes_what_another_library_did(fails):
    model = network().train()
    model[1].eval()  # a frozen BatchNorm
    model[4].weight.requires_grad_(False)
    model(torch.ones(2, 3)).sum().backward()
    model[4].bias.grad = None
    modes, flags = modes_of(model), [p.requires_grad for p in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    assert gradients.count(None) == 2
    weights = [p.detach().clone() for p in model.parameters()]
    try:
        with kept(model):
            model.eval().train().requires_grad_(True)
            model(torch.rand(5, 3)).sum().backward()  # adds to some gradients, makes others
            model[0].zero_grad()
            model[3].requires_grad_(False)
            if fails:
                raise Broken
    except Broken:
        assert fails
    assert modes_of(model) == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    for parameter, gradient, weight in zip(model.parameters(), gradients, weights, strict=True):
        assert torch.equal(parameter, weight)
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_kept_lets_the_model_learn():
    model = network()
    before = model[0].weight.detach().clone()
    with kept(model):
        model(torch.rand(4, 3)).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert not torch.equal(model[0].weight, before)
    assert all(p.grad is None for p in model.parameters())


def test_kept_does_not_call_train():
    model = NeverTold(nn.Dropout(0.5))
    with kept(model):
        model[0].training = False
    assert modes_of(model) == [True, True]


def test_the_device_is_that_of_the_parameters_or_else_of_the_buffers():
    both = nn.BatchNorm1d(2, device="meta")
    both.running_mean = torch.zeros(2)
    assert device_of(both) == torch.device("meta")
    assert device_of(OnlyBuffers("meta")) == torch.device("meta")
    assert device_of(OnlyBuffers("cpu"), torch.device("meta")) == torch.device("cpu")


def test_a_model_without_tensors_has_the_default_device():
    for model in (nn.ReLU(), torch.relu):
        assert device_of(model, None) is None
        assert device_of(model, torch.device("meta")) == torch.device("meta")


def test_the_device_is_that_of_the_parameters():
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == device_of(torch.relu) == torch.device("cpu")


def test_gradients_stay_views_of_a_buffer():
    model, flat = nn.Linear(3, 2), torch.arange(8.0)
    model.weight.grad, model.bias.grad = flat[:6].view(2, 3), flat[6:]
    with kept(model):
        model.weight.grad.zero_()
        model.bias.grad = None
        model(torch.ones(1, 3)).sum().backward()
    assert torch.equal(flat, torch.arange(8.0))
    assert model.weight.grad.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    model.bias.grad.add_(1)
    assert flat[6:].tolist() == [7.0, 8.0]
