"""Cost of attacks: ATENT and four libraries' PGD on one batch, against the floor of as many plain passes.

    python eval/benchmarks/bench_attack.py [--rounds 5] [--takes 5] [--threads 1] [--out eval/results/bench-attack.json]

The floor is a forward pass and the gradient of the images (torch.autograd.grad), `steps` times, by plain PyTorch on the
network as it is. Needs MNIST (ATENT_DATA) for the network of the early stopping, and the extras of the four libraries.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import bench
import torch
import typer
from torch import Tensor, nn

from atent_ext.attacks.advertorch_style import LinfATENTAttack
from atent_ext.attacks.restarts import Keep
from atent_ext.core import compat

EPS, STEP = 0.3, 0.01
Attack = Callable[[nn.Module, int], Callable[[Tensor, Tensor], object]]


def floor(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    def run(x: Tensor, y: Tensor) -> None:
        for _ in range(steps):
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y), leaf)

    return run


def ours_attack(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    return LinfATENTAttack(model, eps=EPS, nb_iter=steps, eps_iter=STEP).perturb


def with_advertorch(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    compat.advertorch()
    from advertorch.attacks import LinfPGDAttack

    return LinfPGDAttack(model, eps=EPS, nb_iter=steps, eps_iter=STEP).perturb


def with_torchattacks(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    import torchattacks

    return torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=steps)


def with_foolbox(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps)
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    return lambda x, y: attack.run(seen, x, foolbox.criteria.Misclassification(y), epsilon=EPS)


def with_art(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    shape = (1, 28, 28) if next(model.parameters()).shape[1] == 1 else (3, 32, 32)  # which it does not look at
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0))
    attack = ProjectedGradientDescentPyTorch(
        estimator, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1, batch_size=4096, verbose=False
    )
    return lambda x, y: attack.generate(x.numpy(), y.numpy())


FIVE: dict[str, Attack] = {
    "atent_ext LinfATENTAttack": ours_attack,
    "torchattacks PGD": with_torchattacks,
    "advertorch LinfPGDAttack": with_advertorch,
    "Foolbox LinfPGD": with_foolbox,
    "ART PGD": with_art,
}


def one(peer: str, network: str, channels: int, shape: tuple[int, ...], count: int, steps: int) -> bench.Run:
    """One peer's attack on one batch."""
    x, y = bench.batch(shape, count)
    attack = {"floor": floor, **FIVE}[peer](bench.network(network, channels).eval(), steps)
    return lambda: attack(x, y)


def compared(
    network: str,
    shape: tuple[int, ...],
    count: int,
    steps: int,
    rounds: int,
    takes: int = 1,
    peers: Sequence[str] = tuple(FIVE),
) -> Any:
    """The peers and the floor on one batch, and ours with large pages."""
    arguments, first = (network, shape[0], shape, count, steps), peers[0]

    def start() -> dict[str, bench.Worker]:
        workers = {name: bench.Worker(one, name, *arguments) for name in ("floor", *peers)}
        workers[f"{first}, large pages"] = bench.Worker(one, first, *arguments, environment=bench.LARGE_PAGES)
        return workers

    times = bench.retaken(start, rounds, takes)
    setting = {"network": network, "image": shape, "batch": count, "steps": steps, "rounds": rounds, "takes": takes}
    return {**setting, "results": bench.summary(times, "floor")}


def restarted(early: bool, keep: Keep, restarts: int, count: int, steps: int) -> bench.Run:
    """Our attack with restarts on an undefended network; gives the flags."""
    model, test = bench.undefended()
    part = test.take(count)

    def run() -> list[bool]:
        attack = LinfATENTAttack(
            model,
            eps=EPS,
            nb_iter=steps,
            eps_iter=STEP,
            restarts=restarts,
            keep=keep,
            early_stop=early,
            generator=torch.Generator().manual_seed(0),
        )
        with torch.no_grad():
            flags: list[bool] = (model(attack.perturb(part.images, part.labels)).argmax(1) == part.labels).tolist()
        return flags

    return run


def stopped_early(keep: Keep, restarts: int, count: int, steps: int, rounds: int) -> Any:
    """Early stopping with restarts: seconds, and whether the flags are the same."""
    names = {"to the end": False, "stopped": True}
    workers = {name: bench.Worker(restarted, early, keep, restarts, count, steps) for name, early in names.items()}
    times = bench.rounds(workers, rounds)
    flags = {name: worker.ask("result") for name, worker in workers.items()}
    for worker in workers.values():
        worker.stop()
    return {
        **{"network": "small-cnn, trained plainly on 4,000 images", "images": count, "restarts": restarts},
        **{"steps": steps, "keep": keep, "rounds": rounds},
        "robust": {name: sum(found) for name, found in flags.items()},
        "flags_differ": sum(a != b for a, b in zip(*flags.values(), strict=True)),
        "results": bench.summary(times, "stopped"),
    }


def main(
    rounds: int = 5,
    takes: int = 5,
    threads: int = 1,
    out: Annotated[Path, typer.Option()] = Path("eval/results/bench-attack.json"),
    picture: Annotated[Path, typer.Option()] = Path("docs/img/bench-attack.png"),
) -> None:
    torch.set_num_threads(threads)
    report = {"what": "ℓ∞ attacks of 20 steps, eps 0.3, step 0.01", **bench.about()}
    few, mnist = max(3, rounds // 2), (1, 28, 28)
    report["five"] = [
        compared("small-cnn", mnist, 128, 20, rounds, takes),
        compared("resnet-18", (3, 32, 32), 16, 20, 1, takes),
    ]
    report["early_stop"] = [stopped_early(keep, 5, 256, 20, few) for keep in ("last", "success")]
    ours = {"peers": tuple(FIVE)[:1]}
    report["scaling"] = {
        "steps": [compared("small-cnn", mnist, 64, steps, few, **ours) for steps in (5, 10, 40)],
        "batch": [compared("small-cnn", mnist, count, 10, few, **ours) for count in (8, 32, 256)],
        "image": [compared("resnet-20", (3, size, size), 16, 10, few, **ours) for size in (16, 32, 64)],
    }
    bench.write(out, report)
    bench.bars(picture, "Attacks of 20 steps", report["five"])


if __name__ == "__main__":
    typer.run(main)
