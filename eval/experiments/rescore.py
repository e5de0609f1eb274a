"""Score networks of the registry on more images, from their cards and weights, and replace their cards.

python eval/experiments/rescore.py mnist-linf-mma mnist-linf-mart --n 1000 --out rescored

The same command resumes, and skips cards of the same protocol that have as many images. Cards are replaced when all
are scored; evidence of the cards before stays. Then write the pages anew: write_registry.py, write_zoo.py,
write_results.py, write_anytime.py and write_attacks.py of eval/pages.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from zoo import verify

from atent_ext.cli import exit
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.storage import files
from atent_ext.submissions import cards, evidence

REGISTRY = Path(__file__).resolve().parents[2] / "registry"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[list[str], typer.Argument(help="Networks with a card and weights in the registry.")],
    n: Annotated[
        int, typer.Option("--n", min=1, help="Score the first N test images, or all if there are fewer.")
    ] = 1000,
    protocol: Annotated[str | None, typer.Option(help="As for `atent verify` [default: that of the card].")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch and a chunk.")] = 250,
    out: Annotated[Path, typer.Option(help="Folder of submissions, cards and unfinished scores.")] = Path("rescored"),
    registry: Annotated[Path, typer.Option(help="Folder of cards/ and weights/.")] = REGISTRY,
) -> None:
    jobs = [job for job in (find(name, registry, n, protocol) for name in names) if job.needed]
    # The tree of the checkout changes after the last score only: each card names its commit.
    scored = [(job, job.verified(out, batch)) for job in jobs]
    for job, target in scored:
        job.replace(target)


@dataclass(frozen=True)
class Job:
    """A card to be replaced: its path and content, its weights, and the images and protocol that are asked for."""

    path: Path
    card: cards.Card
    report: Report
    weights: bytes
    n: int
    protocol: str

    @property
    def needed(self) -> bool:
        """Whether the card is of fewer images, or of another protocol."""
        return (self.report.n, self.report.protocol) != (self.n, load_protocol(self.protocol).name)

    def verified(self, out: Path, batch: int) -> Path:
        """The new card, written by `atent verify` below `out`."""
        place = out / f"{load_protocol(self.protocol).name}-{self.n}"
        folder, target = place / self.path.stem, place / f"{self.path.stem}.card.json"
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / self.card.weights["file"], self.weights)
        cards.write_submission(self.card.submission, folder / "card.yaml")
        verify(folder, target, self.protocol, self.n, batch)
        return target

    def replace(self, target: Path) -> None:
        """Put the new card and its picture in the place of the old one, with the evidence of the old one."""
        card = cards.read_card(target)
        if self.report.evidence:
            card = evidence.carried(card, self.report)
        shutil.copyfile(target.with_suffix(".png"), self.path.with_suffix(".png"))
        cards.write_card(card, self.path)
        print(f"replaced: {self.path.relative_to(self.path.parents[3])}")


def find(name: str, registry: Path, n: int, protocol: str | None) -> Job:
    """What is to be scored. Raises BadInput without a card or its weights, and for fewer images than the card's."""
    path = next((registry / "cards").glob(f"*/*/{name}.json"), None)
    card = None if path is None else cards.read_card(path)
    if path is None or card is None or card.report is None:
        message = f"the registry has no card {name}; `atent ls zoo` lists them"
        raise BadInput(message, code="unknown-name", field="names")
    weights = registry / "weights" / f"{name}.safetensors"
    if not weights.is_file():
        message = f"the registry has no weights of {name}; put {weights.name} into {weights.parent}"
        raise BadInput(message, code="missing", field="names")
    report, count = card.report, min(n, card.report.total)
    if count < report.n:
        message = f"n is {n}, and the card of {name} has {report.n} images; ask for as many at least"
        raise BadInput(message, code="bad-value", field="n")
    return Job(path, card, report, cards.content_of(card, weights), count, protocol or report.protocol)


if __name__ == "__main__":
    exit.run(app)
