"""Models whose optimum, posterior or gradient is known in closed form, and small networks to check against."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from atent_ext.attacks.spec import parse


class LinearTwoClass(nn.Module):
    """logits = (0, w . x + b): the loss of class 0 is log(1 + exp(w . x + b)), that of class 1 log(1 + exp(-...))."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(math.prod(shape), generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], 1)

    def worst_loss(self, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        """The largest cross-entropy in the eps ball (no box): the score moves by eps times the dual norm of w."""
        dual = self.w.abs().sum() if norm == "Linf" else self.w.norm()
        sign = 1 - 2 * y.to(x.dtype)  # class 0 suffers from a higher score
        score = x.flatten(1) @ self.w + self.b
        return nn.functional.softplus(sign * score + eps * dual).detach()


class SmallNet(nn.Module):
    """A convolutional network with dropout, for gradients in float64; `passes` counts its forward passes."""

    def __init__(self, classes: int = 4, dropout: float = 0.5, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(6 * 6 * 6, classes)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        hidden = torch.tanh(self.norm(self.conv(x)))
        return self.out(self.drop(hidden.flatten(1)))


def small_net(seed: int = 0, dtype: torch.dtype = torch.float64, norm: bool = False) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallNet(norm=norm).to(dtype).eval()


def small_batch(count: int = 7, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 4, (count,), generator=generator)


def gradient_vector(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def tiny_net(classes: int = 10, channels: int = 1) -> nn.Module:
    """For 8×8 images: quick to train, with the two layers that make a resumed run hard, BatchNorm and dropout."""
    hidden = [nn.Linear(64 * channels, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, classes))


class _OwnForward(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def own_forward(classes: int = 10, channels: int = 1) -> nn.Module:
    """A chain of layers by a `forward` of its own, which interval bounds have to compare with the chain."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 32), nn.ReLU(), nn.Linear(32, classes))
    return _OwnForward(layers)


def tiny_with_statistics(seed: int) -> nn.Module:
    """`tiny_net` whose buffers differ from those of another seed, too, as after a training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = tiny_net().eval()
        for name, tensor in network.named_buffers():
            tensor.copy_(torch.tensor(7 + seed) if name.endswith("tracked") else 0.5 + torch.rand(tensor.shape))
    return network


class Shared(nn.Module):
    """`tiny_net` under two names, with a tied layer in front: the same tensors have several names."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.second.weight = self.first.weight
        self.model = tiny_net(classes, channels)
        self.attacker = nn.Sequential(self.model)

    def forward(self, x: Tensor) -> Tensor:
        return self.attacker(self.second(self.first(x)))


class ExtraState(nn.Sequential):
    """A network whose state dict holds more than tensors."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__(tiny_net(classes, channels))

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def chain() -> nn.Sequential:
    """A chain of layers that interval bounds know, with logits far apart; for images (N, 1, 6, 6) in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 36, 4)]
        model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *head).double().eval()
    with torch.no_grad():
        model[-1].weight *= 6
    return model


def chain_batch() -> tuple[Tensor, Tensor]:
    """Images, most of which `chain` has right."""
    x, _ = small_batch()
    y = chain()(x).argmax(1)
    y[:2] = (y[:2] + 1) % 4
    return x, y


class OnlyBuffers(nn.Module):
    """No parameters, buffers on `device`: always class 1 of 2. `seen` has the devices of what any copy was shown."""

    seen: ClassVar[list[torch.device]] = []

    def __init__(self, device: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False, device=device)
        self.seen.clear()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.device)
        return torch.tensor([0.0, 1.0]).expand(len(x), 2)


class Wrapped(nn.Module):
    """A sound network inside of one that answers by `answer(network, x)`."""

    def __init__(self, network, answer):
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x):
        return self.answer(self.network, x)


def visible(folder):
    """What lies in a folder besides hidden files, such as the lock of who works there."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def attack_spec(name, **fields):
    """An attack of a protocol by its name."""
    return parse({"attack": name, **fields})
