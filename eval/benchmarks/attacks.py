"""One table of attacks: how many images they leave, at equal budgets of passes an image.

    python eval/benchmarks/attacks.py --data-root DATA
    python eval/benchmarks/attacks.py --network mnist-linf-trades --budget 20 --budget 100 --n 200 --data-root DATA
    python eval/benchmarks/attacks.py --broken --data-root DATA

--broken: only the images that AutoAttack broke when the card was made, with annealed ATENT at 1,000 passes: what it
leaves of them and what AutoAttack left bound what it leaves of all.

A pass is one forward of one image while the attack runs, counted by `core.passes.Counted`, as are backward passes.
A budget is a limit of passes an image: settings are chosen so that an attack stays below it.
A row gives the passes that were used: `mean_passes` is the mean over all images. Images that are wrong from the start
or broken early take fewer if the attack stops there.
The convolutions of a network that hides nothing run in the channels-last format, which changes logits by rounding only.
A cell is one attack on one network at one budget. It is written as a line of the file as soon as it is measured, and
another call continues from there. python eval/pages/write_attacks.py writes docs/attacks.md from the lines.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rivals import ATTACKS, Case
from torch import Tensor, nn

from atent_ext.attacks.accuracy import flags_under
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.passes import Counted
from atent_ext.core.schema import Threat
from atent_ext.core.version import __version__
from atent_ext.data.datasets import Split
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare
from atent_ext.subjects import weights_file, zoo

BUDGETS = (20, 100, 500, 2000)
BATCH = 100
RESULTS = Path(__file__).parents[1] / "results" / "attacks.jsonl"


# ---- networks


class Behind(nn.Module):
    """A network of which `answer(network, x)` is what an attack sees."""

    def __init__(self, network: nn.Module, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.network, x)


MASKS: Mapping[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "rounding": lambda network, x: network((16 * x).round() / 16),
    "detach": lambda network, x: network(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True),
    "scaled logits": lambda network, x: 1e5 * network(x),
    "noise": lambda network, x: network(x + 0.05 * torch.randn_like(x)),
    "dropout": lambda network, x: network(F.dropout(x, 0.1, training=True)),
    "saturated softmax": lambda network, x: (100 * network(x)).softmax(1),
}
"""The six ways in which a network hides its gradients, in front of or behind a robust network for digits."""

MNIST = (
    *("mnist-linf-atent", "mnist-linf-pgd-at-best", "mnist-linf-trades", "mnist-linf-mart", "mnist-linf-mma"),
    *("mnist-l2-atent", "mnist-l2-pgd-at"),
)
DIGITS = "quickstart-digits-linf-pgd-at"
CIFAR = "pyautoattack-resnet18"
NETWORKS = (*MNIST, DIGITS, CIFAR, *MASKS)


def subject(name: str, root: Path) -> Subject:
    """The network on its test images, under its card's threat model. Raises AtentError where weights are missing."""
    if name in MASKS:
        plain = zoo.from_card(DIGITS, root=root)
        return Subject(Behind(plain.model, MASKS[name]), plain.test, plain.threat, plain.about, plain.part)
    if name != CIFAR:
        return zoo.from_card(name, root=root)
    import importlib.util

    spec = importlib.util.find_spec("pyautoattack")
    if spec is None or spec.origin is None:
        raise SystemExit("pyautoattack is not installed")
    weights = Path(spec.origin).parent / "examples" / "model_test.pt"
    data = f"npz:{root}/cifar10_sample/cifar10_sample.npz"
    return weights_file.from_weights(weights, "resnet-18-pyautoattack", data, Threat(norm="Linf", eps=1 / 255), root)


def images(name: str, budget: int) -> int:
    """How many images a cell has at most: fewer where a pass is dear."""
    if name == CIFAR:
        return 64 if budget <= 100 else 0
    return 1000


# ---- a cell


def measure(network: nn.Module, split: Split, threat: Threat, attack: str, budget: int, seed: int) -> dict[str, Any]:
    """A cell: which images the attack leaves, and what it cost."""
    counted = Counted(network, backward=True)
    case = Case(norm_called(threat.norm), threat.eps, budget, seed)
    build = ATTACKS[attack](case)

    def attacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return build(counted, x, y)  # the checks of its adversaries are not its passes

    began = time.process_time()
    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = flags_under(attacked, network, split, case.norm, case.eps, BATCH)
    return {
        "left": int(flags.sum()),
        "mean_passes": round(counted.forward_passes / len(split), 1),
        "mean_backward": round(counted.backward_passes / len(split), 1),
        "cpu_seconds": round(time.process_time() - began, 2),
        "flags": "".join("01"[int(flag)] for flag in flags),
    }


def broken(name: str, split: Split) -> tuple[Split, dict[str, int]]:
    """The images that AutoAttack breaks according to the card, and the card's counts."""
    report = zoo.find(name)[0][0].report
    results = report.of_kind("clean"), report.autoattack
    if None in results:
        raise SystemExit(f"the card of {name} has no AutoAttack")
    clean, attacked = (result.robust() for result in results if result is not None)
    rows = (clean & ~attacked).nonzero().squeeze(1)
    counts = {"card_n": report.n, "autoattack": int(attacked.sum()), "apgd_ce": results[1].robust_after["apgd-ce"]}
    return Split(split.images[rows], split.labels[rows]), counts


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


app = typer.Typer(add_completion=False)


@app.command()
def main(
    network: Annotated[list[str] | None, typer.Option()] = None,
    attack: Annotated[list[str] | None, typer.Option()] = None,
    budget: Annotated[list[int] | None, typer.Option()] = None,
    n: Annotated[int | None, typer.Option(help="at most so many images a cell")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    data_root: Annotated[Path | None, typer.Option()] = None,
    out: Annotated[Path, typer.Option()] = RESULTS,
    only_broken: Annotated[bool, typer.Option("--broken")] = False,
) -> None:
    root = data_root or Path(os.environ.get("ATENT_DATA", "."))
    if only_broken:
        attack, budget, out = ["ATENT annealed"], budget or [1000], out.with_name(f"{out.stem}-broken.jsonl")
    named = ("network", "attack", "budget", "n", "seed")
    done = {tuple(row[key] for key in named) for row in read(out)}
    for name in network or NETWORKS:
        chosen = subject(name, root)
        model = chosen.model if name in MASKS else prepare(chosen.model, chosen.test.images[:32]).model
        for limit in budget or BUDGETS:
            split, more = chosen.test.take(min(len(chosen.test), images(name, limit), n or len(chosen.test))), {}
            if only_broken:
                split, more = broken(name, chosen.test)
            for which in (attack or ATTACKS) if len(split) else ():
                key = dict(zip(named, (name, which, limit, len(split), seed), strict=True))
                if tuple(key.values()) in done:
                    continue
                try:
                    cell = measure(model, split, chosen.threat, which, limit, seed)
                except LookupError as error:
                    cell = {"missing": str(error)}
                versions = {"atent-ext": __version__, "torch": torch.__version__}
                row = {
                    **key,
                    "norm": chosen.threat.norm,
                    "eps": chosen.threat.eps,
                    **more,
                    **cell,
                    "versions": versions,
                }
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print({**key, **{k: v for k, v in cell.items() if k != "flags"}}, flush=True)


if __name__ == "__main__":
    app()
