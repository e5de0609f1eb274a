"""Write docs/results.md from the results of `atent reproduce` in eval/results/, and what the zoo says of ATENT.

python eval/write_results.py
"""

import json
from pathlib import Path

import typer
from write_zoo import duels
from zoo import entries

from atent_ext import checkpoints
from atent_ext.papers import study
from atent_ext.papers.markdown import page

HERE = Path(__file__).resolve().parent
ZOO = """## The zoo: the same budget, the same images, AutoAttack

Networks for MNIST of a common budget of passes, one training each, compared on the same test images;
[zoo.md](zoo.md) has their accuracies under each attack, their recipes, how they were scored and what is not done yet.

So far the entropy part has not earned its place in ℓ∞: ATENT is worse than PGD-AT under AutoAttack, at 48 passes and at
264 (there of the better of two radii, and PGD-AT of the one that was tried). At 48 passes PGD does not tell the two
apart: most of what ATENT then loses it loses to AutoAttack's first attack, APGD on the cross-entropy, and no sign of
gradient masking was found. PGD alone, as in the papers, would have called this a tie. It is one training each, and the
differences between seeds are not known.
"""


def results() -> list[dict]:
    """The results of the largest scale that is there, in the order of the studies; smoke shows that the path works."""
    found = []
    for name in study.names():
        paths = [HERE / "results" / f"{name}-{scale}.json" for scale in ("full", "cpu")]
        found += [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()][:1]
    return found


def main(out: Path = HERE.parent / "docs" / "results.md") -> None:
    pictures = sorted(f"img/{path.name}" for path in (HERE.parent / "docs" / "img").glob("paper-*.png"))
    title, rest = page(results(), pictures).split("## ", 1)
    checkpoints.write(out, "\n".join([title + ZOO, *duels(entries()), "", "## " + rest]))
    print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
