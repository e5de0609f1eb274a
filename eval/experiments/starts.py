"""How often a short chain breaks images that AutoAttack's APGD broke, by its start; images are those of `held_out.py`.

python eval/experiments/starts.py zoo/runs/11dc63de held-out.json --out starts.json  (defaults of docs/log/zoo.md)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.attacks.langevin import Langevin, hardest, input_gradient, walk
from atent_ext.cli import exit
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import evaluating
from atent_ext.core.norms import LINF, Start
from atent_ext.data.datasets import Split
from atent_ext.storage import files
from atent_ext.subjects import run_folder
from atent_ext.training.run_folder import RunFolder


@dataclass(frozen=True)
class Chain:
    """Of `steps` steps, from the hardest of `starts` random starts; both lengths as shares of eps."""

    start: Start
    starts: int
    steps: int
    step: float


CHAINS = (
    Chain("corner", 1, 6, 0.375),
    Chain("uniform", 1, 6, 0.375),
    Chain("blocks", 1, 6, 0.375),
    Chain("corner", 1, 20, 0.25),
    Chain("corner", 1, 100, 0.1),
    Chain("corner", 10, 6, 0.375),
    Chain("blocks", 10, 6, 0.375),
    Chain("blocks", 8, 4, 0.5),
)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    report: Annotated[Path, typer.Argument(help="Of held_out.py, of that run.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    eps: Annotated[float | None, typer.Option(help="Radius of the chains [default: that of the training].")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each chain, with seeds of their own.")] = 10,
) -> None:
    """Write, for each chain, how many of the images each run breaks, and how many all runs leave."""
    subject = run_folder.from_run(run, held_out=True)
    found = _report(report, run, str(subject.about.weights_sha256))
    eps = float(RunFolder(run).recipe().objective["eps"]) if eps is None else eps
    images = subject.test.take(found["n"])
    right = clean_flags(subject.model, images)
    chosen = [i for i, flag in enumerate(found["flags"]) if flag == "0" and right[i]]
    broken = Split(images.images[chosen], images.labels[chosen])
    rows = []
    for chain in CHAINS:
        runs = torch.stack([_left(subject.model, broken, chain, eps, seed) for seed in range(repeats)])
        rows.append({**asdict(chain), "broken": (~runs).sum(1).tolist(), "left_by_all": int(runs.all(0).sum())})
        print(rows[-1])
    keep = {key: found[key] for key in ("weights_sha256", "data", "images", "threat", "attack", "package")}
    chains = {"eps": eps, "repeats": repeats, "torch": torch.__version__, "chains": rows}
    result = {**keep, "broken_images": len(chosen), **chains}
    files.write(out, json.dumps(result, indent=2) + "\n")


def _report(path: Path, run: Path, weights: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["weights_sha256"] != weights:
        raise BadInput(f"{path} is of other weights than {run}; run held_out.py on it first")
    if not found["images"].endswith("held-out images"):
        raise BadInput(f"{path} is of {found['images']}; run held_out.py without --trained-on")
    if found["threat"]["norm"] != "Linf":
        raise BadInput(f"{path} is of {found['threat']['norm']}; the chains are of Linf, so give a run of that")
    return found


def _left(model: torch.nn.Module, images: Split, chain: Chain, eps: float, seed: int) -> torch.Tensor:
    kernel = Langevin(
        norm=LINF, eps=eps, steps=chain.steps, step_size=chain.step * eps, direction="sign", start=chain.start
    )
    x, y = images.images, images.labels
    draws = torch.Generator().manual_seed(seed)
    with evaluating(model):
        with torch.no_grad():
            first = hardest(kernel, x, lambda moving: cross_entropy(model(moving), y), chain.starts, draws)
        *_, last = walk(kernel, x, input_gradient(model, cross_entropy, y), draws, first)
        with torch.no_grad():
            return model(last).argmax(1) == y


if __name__ == "__main__":
    exit.run(app)
