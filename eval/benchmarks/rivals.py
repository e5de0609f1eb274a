"""The attacks of the table by name, each for a budget of passes per image; see attacks.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks import uphill
from atent_ext.attacks.langevin import Langevin, atent, pgd
from atent_ext.attacks.restarts import adversaries
from atent_ext.core import compat, seeds
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import Norm

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A ball, a budget of passes an image, and a seed."""

    norm: Norm
    eps: float
    budget: int
    seed: int


# ---- attacks by the name that the table has


def chains(kernel: Langevin, case: Case, restarts: int, losses: Any = cross_entropy) -> Attack:
    generator = seeds.generator(case.seed)
    how: dict[str, Any] = {"restarts": restarts, "keep": "success", "rescue": kernel.schedule != "constant"}
    return lambda model, x, y: adversaries(kernel, model, x, y, losses, generator, **how)


def split_pgd(restarts: int, case: Case) -> Attack:
    steps = case.budget // restarts - 1
    return chains(pgd(case.norm, case.eps, steps), case, restarts)


def annealed(case: Case) -> Attack:
    """Restarts that climb the losses of `uphill.IN_TURN`, and divide the budget as `uphill.divided` says."""
    restarts, steps = uphill.divided(case.budget)
    return chains(atent(case.norm, case.eps, steps), case, restarts, uphill.in_turn(uphill.IN_TURN, restarts))


def printed(case: Case) -> Attack:
    """The paper's chain of 40 constant steps (19 at a budget of 20), with as many restarts as the budget allows."""
    steps = min(40, case.budget - 1)
    last = "last" if case.norm.name == "Linf" else "every"
    kernel = atent(case.norm, case.eps, steps, 0.01 / 0.3 * case.eps if last == "last" else case.eps / 16, project=last)
    return chains(kernel, case, max(1, case.budget // (steps + 1)))


def autoattack(choose: Callable[[Any, int], Any], case: Case) -> Attack:
    """One of AutoAttack's attacks, without its checks of the model, which take passes."""

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        how: dict[str, Any] = {"version": "custom", "seed": case.seed, "verbose": False}
        rival = choose(compat.autoattack_class()(model, norm=case.norm.name, eps=case.eps, **how), case.budget)
        rival.seed = case.seed
        with compat.untouched(model):
            adversary: Tensor = rival.perturb(x, y)
        return adversary

    return attack


def apgd_ce(all_four: Any, budget: int) -> Any:
    rival, restarts = all_four.apgd, max(1, round(budget / 100))
    rival.loss, rival.n_restarts, rival.n_iter = "ce", restarts, (budget - 1) // restarts - 1
    return rival


def apgd_t(all_four: Any, budget: int) -> Any:
    rival, targets = all_four.apgd_targeted, max(1, min(9, budget // 50))
    rival.n_target_classes, rival.n_restarts, rival.n_iter = targets, 1, (budget - 1) // targets - 2
    return rival


def fab_t(all_four: Any, budget: int) -> Any:
    rival, targets = all_four.fab, max(1, min(9, budget // 50))
    rival.targeted, rival.n_target_classes, rival.n_restarts = True, targets, 1
    rival.n_iter = max(1, budget // targets // 2 - 3)
    return rival


def square(all_four: Any, budget: int) -> Any:
    all_four.square.n_queries = budget - 3
    return all_four.square


def in_torchattacks(linf: str, l2: str | None, settings: Callable[[Case], dict[str, Any]], case: Case) -> Attack:
    import torchattacks

    name = linf if case.norm.name == "Linf" else l2
    if name is None:
        raise LookupError(f"torchattacks has no ℓ2 form of {linf}")
    return lambda model, x, y: getattr(torchattacks, name)(model, eps=case.eps, **settings(case))(x, y)


def pgd_settings(a_step: int, before: int, case: Case) -> dict[str, Any]:
    steps = (case.budget - before) // a_step
    return {"alpha": 2.5 * case.eps / steps, "steps": steps}


def apgd_settings(case: Case) -> dict[str, Any]:
    restarts = max(1, round(case.budget / 100))
    return {
        "norm": case.norm.name,
        "steps": max(1, case.budget // restarts - 3),
        "n_restarts": restarts,
        "seed": case.seed,
    }


def in_foolbox(case: Case) -> Attack:
    import foolbox

    kinds = foolbox.attacks.LinfPGD, foolbox.attacks.L2PGD
    rival = kinds[case.norm.name == "L2"](rel_stepsize=2.5 / (case.budget - 1), steps=case.budget - 1)

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        adversary: Tensor = rival.run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=case.eps)
        return adversary

    return attack


def in_art(case: Case) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        box = {"clip_values": (0.0, 1.0), "device_type": "cpu"}
        estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, **box)
        order = "inf" if case.norm.name == "Linf" else 2
        how = {
            "eps_step": 2.5 * case.eps / case.budget,
            "max_iter": case.budget - 3,
            "batch_size": len(x),
            "verbose": False,
        }
        rival = ProjectedGradientDescent(estimator, order, case.eps, num_random_init=1, **how)
        return torch.from_numpy(rival.generate(x.numpy(), y.numpy())).to(x)

    return attack


IN_TORCHATTACKS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("BIM", "MIFGSM", "NIFGSM", "DIFGSM", "UPGD", "Jitter"), (1, 0)),
    **{"TPGD": (1, 1), "EOTPGD": (2, 0), "SINIFGSM": (5, 0), "VMIFGSM": (6, 0)},
}
"""Its other iterated attacks within an ℓ∞ ball: the passes of a step, and those before the first."""

ATTACKS: Mapping[str, Callable[[Case], Attack]] = {
    "ATENT annealed": annealed,
    "ATENT as printed": printed,
    "APGD-CE": partial(autoattack, apgd_ce),
    "APGD-T": partial(autoattack, apgd_t),
    "FAB-T": partial(autoattack, fab_t),
    "Square": partial(autoattack, square),
    **{f"PGD x {restarts}": partial(split_pgd, restarts) for restarts in (1, 2, 5, 10)},
    "torchattacks PGD": partial(in_torchattacks, "PGD", "PGDL2", partial(pgd_settings, 1, 0)),
    "torchattacks APGD": partial(in_torchattacks, "APGD", "APGD", apgd_settings),
    **{
        f"torchattacks {name}": partial(in_torchattacks, name, None, partial(pgd_settings, *passes))
        for name, passes in IN_TORCHATTACKS.items()
    },
    "Foolbox PGD": in_foolbox,
    "ART PGD": in_art,
}
