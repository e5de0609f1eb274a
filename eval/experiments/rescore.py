"""Score networks of the registry on more images, from their cards and weights, and replace their cards.

python eval/experiments/rescore.py mnist-linf-mma mnist-linf-mart --n 1000 --out rescored

The same command resumes, and skips cards of as many images. Evidence of the card before stays. Afterwards write the
pages anew: write_registry.py, write_zoo.py, write_results.py, write_anytime.py and write_attacks.py of eval/pages.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli import exit
from atent_ext.core.errors import BadInput
from atent_ext.storage import files
from atent_ext.submissions import cards, evidence

REGISTRY = Path(__file__).resolve().parents[2] / "registry"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[list[str], typer.Argument(help="Networks with a card and weights in the registry.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Score the first N test images.")] = 1000,
    protocol: Annotated[str, typer.Option(help="As for `atent verify`.")] = "zoo",
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch and a chunk.")] = 250,
    out: Annotated[Path, typer.Option(help="Folder of submissions, cards and unfinished scores.")] = Path("rescored"),
    registry: Annotated[Path, typer.Option(help="Folder of cards/ and weights/.")] = REGISTRY,
) -> None:
    paths = [find(name, registry) for name in names]  # all, before hours go by
    for path in paths:
        if not done(cards.read_card(path), n, protocol):
            replace(path, verified(path, registry / "weights", out, n, protocol, batch))


def find(name: str, registry: Path = REGISTRY) -> Path:
    """The card of a network whose weights the registry has. Raises BadInput if there is no card, or no such weights."""
    path = next((registry / "cards").glob(f"*/*/{name}.json"), None)
    if path is None:
        raise BadInput(
            f"the registry has no card {name}; `atent ls zoo` lists them", code="unknown-name", field="names"
        )
    cards.content_of(cards.read_card(path), weights_of(path, registry / "weights"))
    return path


def weights_of(card: Path, folder: Path) -> Path:
    return folder / f"{card.stem}.safetensors"


def done(card: cards.Card, n: int, protocol: str) -> bool:
    """Whether the card is of this protocol and of at least `n` images."""
    return card.report is not None and card.report.protocol == protocol and card.report.n >= n


def verified(path: Path, weights: Path, out: Path, n: int, protocol: str, batch: int) -> Path:
    """The new card, written by `atent verify` into `out`."""
    card, folder, target = cards.read_card(path), out / path.stem, out / f"{path.stem}.card.json"
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / card.weights["file"], cards.content_of(card, weights_of(path, weights)))
    cards.write_submission(card.submission, folder / "card.yaml")
    command = ["verify", str(folder), "--n", str(n), "--protocol", protocol, "--out", str(target)]
    command += ["--batch-size", str(batch), "--chunk", str(batch)]
    process = subprocess.run([sys.executable, "-m", "atent_ext", *command])
    if process.returncode:  # it has printed why
        raise typer.Exit(process.returncode)
    return target


def replace(path: Path, target: Path) -> None:
    """Put the new card and its picture in the place of the old one, with the evidence of the old one."""
    before, card = cards.read_card(path), cards.read_card(target)
    if before.report is not None and before.report.evidence:
        card = evidence.carried(card, before.report)
    shutil.copyfile(target.with_suffix(".png"), path.with_suffix(".png"))
    cards.write_card(card, path)
    print(f"replaced: {path.relative_to(path.parents[3])}")


if __name__ == "__main__":
    exit.run(app)
