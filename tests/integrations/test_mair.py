import copy
import sys
from types import ModuleType

import pytest
import torch
from problems import gradient_vector, small_batch, small_net
from torch import nn

from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.integrations import mair
from atent_ext.objectives import ATENT, MART, PGDAT, TRADES, Standard

COMMON = {"eps": 0.1, "steps": 3, "step_size": 0.05}
OBJECTIVES = [Standard(), *(method(**COMMON) for method in (PGDAT, TRADES, MART, ATENT)), ATENT(norm="L2", **COMMON)]
ANY = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)


# A stand-in for MAIR, which is not on PyPI: what its RobModel, its trainers and its SAM do to a subclass.


class RobModel(nn.Module):
    def __init__(self, model, mean=0.0, std=1.0):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor([mean]))
        self.register_buffer("std", torch.tensor([std]))

    def forward(self, x):
        return self.model(x)


class AdvTrainer:
    def __init__(self, rmodel, device=None):
        assert isinstance(rmodel, RobModel)
        self.rmodel = rmodel
        if device is None:  # as in MAIR, which loses a device that is given
            self.device = next(rmodel.parameters()).device
        self.dict_record = {}
        self.optimizer, self.minimizer = None, None

    def setup(self, optimizer, minimizer=None):
        self.optimizer, self.minimizer = optimizer, minimizer

    def fit(self, train_loader, n_epochs, record_type="Epoch", save_path=None, save_type="Epoch"):
        if save_path is None and save_type is not None:
            raise ValueError("save_path should be given for save_type != None.")
        if record_type is not None:
            raise KeyError("loaders")  # of record_rob, which was not called
        for _ in range(n_epochs):
            for train_data in train_loader:
                self.dict_record = {}
                self.rmodel.train()
                self._update_weight(train_data)

    def add_record_item(self, key, val):
        self.dict_record[key if key not in self.dict_record else f"{key}_1"] = val

    def _update_weight(self, train_data):
        if self.minimizer is not None:
            self.minimizer.step(lambda data: self.calculate_cost(data), train_data)
            return
        cost = self.calculate_cost(train_data)
        self.optimizer.zero_grad()
        cost.backward()
        self.optimizer.step()


class SAM:
    """The gradient at the weights moved by rho along the gradient; the step from where they were."""

    def __init__(self, model, optimizer, rho):
        self.model, self.optimizer, self.rho = model, optimizer, rho

    def step(self, cost_fn, *inputs):
        cost_fn(*inputs).backward()
        moves = self.ascend()
        cost_fn(*inputs).backward()
        with torch.no_grad():
            for parameter, move in moves:
                parameter.sub_(move)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def ascend(self):
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        size = torch.stack([parameter.grad.norm() for parameter in trained]).norm()
        moves = [(parameter, self.rho / size * parameter.grad) for parameter in trained]
        for parameter, move in moves:
            parameter.add_(move)
        self.optimizer.zero_grad()
        return moves


def package(name, **attributes):
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(attributes)
    return module


@pytest.fixture
def trainer_class(monkeypatch):
    names = ["mair", "mair.defenses", "mair.defenses.advtraining"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, package(name))
    monkeypatch.setitem(
        sys.modules, f"{names[-1]}.advtrainer", package(f"{names[-1]}.advtrainer", AdvTrainer=AdvTrainer)
    )
    mair.trainer_class.cache_clear()
    yield mair.trainer_class()
    mair.trainer_class.cache_clear()


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def robust(mean=0.0, std=1.0, norm=False):
    model = small_net(norm=norm)
    model.drop.p = 0.0
    return RobModel(model, mean, std)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def accumulate(objective, model, x, y, source):
    """What a user's own loop does; returns the loss."""
    total = torch.zeros((), dtype=x.dtype)
    for term in objective(model, x, y, generator=source):
        term.backward()
        total += term.detach()
    return total


# One loss from many terms.


@ANY
def test_one_loss_has_the_value_and_the_gradients_of_the_terms(objective):
    model, (x, y) = small_net(), small_batch()
    expected = accumulate(objective, model, x, y, generator())
    gradients = gradient_vector(model)
    model.zero_grad()
    loss = mair.one_loss(model, objective(model, x, y, generator=generator()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert loss.shape == ()
    torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-12)
    loss.backward()
    torch.testing.assert_close(gradient_vector(model), gradients, rtol=0, atol=1e-12)


def test_gradients_that_were_there_are_left_alone_and_added_to():
    model, (x, y) = small_net(), small_batch()
    accumulate(Standard(), model, x, y, None)
    gradients = gradient_vector(model)
    there = [torch.full_like(parameter, 0.25) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), there, strict=True):
        parameter.grad = gradient
    loss = mair.one_loss(model, Standard()(model, x, y))
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), there, strict=True))
    assert bool((gradient_vector(model) == 0.25).all())
    (3 * loss).backward()
    torch.testing.assert_close(gradient_vector(model), 3 * gradients + 0.25, rtol=0, atol=1e-12)


def test_gradients_that_were_there_come_back_after_an_exception():
    model, (x, y) = small_net(), small_batch()
    model.out.weight.grad = torch.ones_like(model.out.weight)

    def terms():
        yield from Standard()(model, x, y)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mair.one_loss(model, terms())
    assert bool((model.out.weight.grad == 1).all())
    assert model.conv.weight.grad is None


def test_parameters_that_are_not_trained_or_not_used_get_no_gradient():
    model, (x, y) = small_net(), small_batch()
    model.conv.weight.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(2, dtype=x.dtype))
    mair.one_loss(model, ATENT(**COMMON)(model, x, y, generator=generator())).backward()
    assert model.conv.weight.grad is None
    assert model.unused.grad is None
    assert not model.conv.weight.requires_grad
    assert model.out.weight.grad is not None


# The trainer.


def test_the_trainer_is_mairs_and_knows_its_model(trainer_class):
    trainer = trainer_class(robust(), Standard())
    assert isinstance(trainer, AdvTrainer)
    assert trainer_class.__name__ == "ObjectiveTrainer"
    assert mair.trainer_class() is trainer_class
    assert trainer.device == torch.device("cpu")


@ANY
def test_training_is_a_hand_written_loop(trainer_class, objective):
    rmodel, (x, y) = robust(), small_batch()
    model, source = copy.deepcopy(rmodel), generator()
    optimizer = optimizer_of(model)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(float(accumulate(objective, model, x, y, source)))
        optimizer.step()
    trainer = trainer_class(rmodel, objective, seed=5)
    trainer.setup(optimizer_of(rmodel))
    trainer.fit([(x, y)], 3, record_type=None, save_type=None)
    assert trainer.dict_record == {"Loss": pytest.approx(losses[-1], abs=1e-12)}
    for found, expected in zip(rmodel.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@ANY
def test_a_minimizer_that_asks_twice_gets_both_gradients(trainer_class, objective):
    rmodel, (x, y) = robust(), small_batch()
    model, source, rho = copy.deepcopy(rmodel), generator(), 0.05
    optimizer = optimizer_of(model)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    accumulate(objective, model, x, y, source)
    ascent = rho * gradient_vector(model) / gradient_vector(model).norm()
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(model.parameters()).detach() + ascent, model.parameters()
    )
    optimizer.zero_grad()
    accumulate(objective, model, x, y, source)
    for parameter, value in zip(model.parameters(), start, strict=True):
        parameter.data = value
    optimizer.step()
    trainer = trainer_class(rmodel, objective, seed=5)
    trainer.setup(optimizer_of(rmodel), SAM(rmodel, optimizer_of(rmodel), rho))
    trainer.fit([(x, y)], 1, record_type=None, save_type=None)
    assert list(trainer.dict_record) == ["Loss", "Loss_1"]
    for found, expected in zip(rmodel.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@ANY
def test_images_that_the_loader_normalised_are_attacked_in_raw_units(trainer_class, objective):
    (x, y), mean, std = small_batch(), 0.25, 0.5
    normalised, raw = robust(mean, std), robust()
    raw.model.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - mean) / std,))
    found = trainer_class(normalised, objective, seed=5).calculate_cost(((x - mean) / std, y))
    expected = trainer_class(raw, objective, seed=5).calculate_cost((x, y))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for cost in (found, expected):
        cost.backward()
    torch.testing.assert_close(gradient_vector(normalised), gradient_vector(raw), rtol=0, atol=1e-12)


def test_without_a_seed_torchs_state_rules(trainer_class):
    (x, y), rmodel = small_batch(), robust()
    trainer = trainer_class(rmodel, PGDAT(**COMMON))
    costs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        costs.append(float(trainer.calculate_cost((x, y)).detach()))
    assert costs[0] == costs[1] != costs[2]


@ANY
def test_a_cost_leaves_the_model_as_it_was(trainer_class, objective):
    rmodel, (x, y) = robust(norm=True).train(), small_batch()
    rmodel.model.norm.eval()
    rmodel.model.conv.bias.requires_grad_(False)
    modes = [module.training for module in rmodel.modules()]
    buffers = [buffer.clone() for buffer in rmodel.buffers()]
    trainer_class(rmodel, objective, seed=5).calculate_cost((x, y))
    assert [module.training for module in rmodel.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(rmodel.buffers(), buffers, strict=True))
    assert [name for name, parameter in rmodel.named_parameters() if not parameter.requires_grad] == ["model.conv.bias"]
    assert all(parameter.grad is None for parameter in rmodel.parameters())


def test_what_does_not_fit_is_refused(trainer_class):
    trainer, (x, y) = trainer_class(robust(), PGDAT(**COMMON)), small_batch()
    with pytest.raises(BadInput, match="reduction is 'none'"):
        trainer.calculate_cost((x, y), reduction="none")
    with pytest.raises(BadInput, match="they look normalised"):
        trainer.calculate_cost((x - 0.5, y))
    assert all(parameter.grad is None for parameter in trainer.rmodel.parameters())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_what_is_no_seed_is_refused(trainer_class, seed):
    with pytest.raises(BadInput) as refused:
        trainer_class(robust(), PGDAT(**COMMON), seed=seed)
    assert (refused.value.code, refused.value.field) == ("bad-value", "seed")


# Where MAIR is.


def test_the_trainer_is_found_where_the_package_itself_offers_it(trainer_class, monkeypatch):
    monkeypatch.delitem(sys.modules, "mair.defenses.advtraining.advtrainer")
    sys.modules["mair"].AdvTrainer = AdvTrainer
    mair.trainer_class.cache_clear()
    assert issubclass(mair.trainer_class(), AdvTrainer)


def test_without_mair_its_project_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mair", None)
    mair.trainer_class.cache_clear()
    with pytest.raises(MissingExtra, match=r"not on PyPI.*github\.com/Harry24k/MAIR"):
        mair.trainer_class()


def test_a_broken_mair_is_not_called_missing(trainer_class, monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'requests'", name="requests")

    mair.trainer_class.cache_clear()
    monkeypatch.setattr(mair.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="requests"):
        mair.trainer_class()
