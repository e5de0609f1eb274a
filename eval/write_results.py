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

TEXT
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
