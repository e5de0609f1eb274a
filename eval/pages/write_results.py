"""Write docs/results.md from the results of `atent reproduce` in eval/results/, and what the zoo says of ATENT.

python eval/pages/write_results.py
"""

import json
import sys
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
from write_zoo import duels
from zoo import entries

from atent_ext.cli import exit
from atent_ext.experiments import study
from atent_ext.experiments.markdown import page
from atent_ext.storage import files

HERE = Path(__file__).resolve().parents[1]
ZOO = """## The zoo: the same budget, the same images, AutoAttack

Networks for MNIST of a common budget of passes (but for `mnist-l2-atent`), one training each, compared on the same test
images by McNemar's exact test at 5 %, not corrected for the number of comparisons; [zoo.md](zoo.md) has their
accuracies under each attack, their recipes, how they were scored and what else was tried.

**MNIST, ℓ∞: ATENT as a whole has shown no gain over PGD-AT.** Under AutoAttack it is worse at 48 passes and at 264
(there of the better of two radii, and PGD-AT of the one that was tried). On held-out images the 264 passes' pair is
not told apart (2 and 6 of 1,000 right by one alone, p 0.29), and at PGD-AT's radius ATENT is worse (1 and 12, p
0.0034); of two shorter pairs in [measurements.md](measurements.md) one is not told apart and one worse. All lean the
same way; more is not known of the differences between seeds. At 48 passes ATENT is not told apart from TRADES and
MART, and better than MMA, for which three epochs may be too few. SGD and Entropy-SGD, which see no adversary, keep no
image. PGD-40 with 10 restarts tells ATENT and PGD-AT apart at 264 passes, and not at 48; there AutoAttack's first
attack, APGD on the cross-entropy, leaves 451 of ATENT's 500 images and 460 of PGD-AT's. None of the six signs of
masked gradients that the cards look for was found, though AutoAttack warns of three of these networks. PGD alone, as
in the papers, would have called the pair of 48 passes a tie, and ATENT's trained on at a larger radius better than the
pair of 264: of 500 images PGD-20 leaves it 487 and them 476 each. AutoAttack leaves it 460, ATENT's 461 and PGD-AT's
466, and tells it apart from neither ([zoo.md](zoo.md#what-was-tried-for-a-better-recipe)).

At 48 passes, dropout is one thing that parts the two: ATENT's inner loop leaves it on, PGD-AT's turns it off. With it
off in both, ATENT (56 passes then) has 90.6 and PGD-AT 91.6, 2 and 7 of 500 images right by one alone (p 0.18); with it
on in both, 89.6 and 90.4, 3 and 7 (p 0.34). So neither comparison tells ATENT's average, noise and start from plain
PGD; both lean the same way again. AutoAttack warns of both networks that were trained for this, of ATENT's in each
chunk: Square breaks images that its gradient attacks left.

**MNIST, ℓ2, 132 passes: ATENT is not told apart from PGD-AT and MMA** under AutoAttack, and better than TRADES of beta
1. MMA, which asks for a larger margin than the radius, has the most images right, and is just told apart from PGD-AT
(p 0.047). MMA and ATENT were trained in bfloat16 and scored on a CPU, the other two in float32 on a GPU, with older
torch and other chunks.

`mnist-l2-atent` is ATENT tuned on held-out images: SmallCNN without dropout, trained at radius 2.25 and then 2.5, with
5 steps, batches of 64 and averaged weights, 84 passes, where the others are the paper's LeNet5. On the first 1,000 test
images it has 97.7 clean, 77.6 under PGD-40 with 10 restarts and 71.1 under AutoAttack; the search ended when that PGD
score was known ([zoo.md](zoo.md#what-was-tried-for-a-better-recipe)). On the 500 that all were scored on it has 70.8
under AutoAttack and MMA 70.6: better than TRADES, and not told apart from PGD-AT, MMA and ATENT of 132 passes. PGD-40
with 10 restarts alone would have called it better than all four. It has fewer clean images right than each (97.0
against 98.8 to 99.2). Its rivals were not tuned: this says what ATENT can be brought to, and nothing of the methods.

**The digits, five trainings of each setting, say what ATENT's gap to PGD-AT goes with there** (an ablation in
[zoo.md](zoo.md), with intervals; trainings of one seed are paired, and corrected for the number of comparisons only raw
gradients remain told apart). As printed, projected after the last step alone, ATENT is about three points worse than
PGD-AT under AutoAttack. With every step projected it is better than as printed and not told apart from PGD-AT. The
MNIST networks above project every step, so that this does not explain theirs. A lower weight of the last iterate (alpha
0.5 instead of 0.9), or the same for all, is not told apart under AutoAttack and costs clean accuracy; with the last
iterate alone (alpha 1), ATENT is about two points worse as printed, and not told apart where every step is projected:
there no gain of the average was seen. No noise from 0 to 0.1 is told apart from the paper's 0.001. Raw gradients
instead of their signs cost many points. With the same number of passes, fewer steps an image (5) and more epochs are
better than 10, and 20 are worse.

**CIFAR-10 (JPEG), ResNet-20, ℓ∞ 8/255, 4 epochs of 28 passes together on a CPU: no gain of ATENT there either.** Far
from converged, one training each, the first 500 test images ([zoo.md](zoo.md#cifar-10-jpeg-a-few-epochs-on-a-cpu)).
Under AutoAttack PGD-AT has 24.8, TRADES 23.0, ATENT 22.6 and MART 22.0; ATENT is just told apart from PGD-AT (7 and 18
right by one alone, p 0.043) and from neither of the others. TRADES has the most clean images right, MART the fewest.
"""


def results() -> list[dict]:
    """The results of the largest scale that is there, in the order of the studies; smoke shows that the path works."""
    found = []
    for name in study.names():
        paths = [HERE / "results" / f"{name}-{scale}.json" for scale in ("full", "cpu")]
        found += [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()][:1]
    return found


app = typer.Typer(add_completion=False)


@app.command()
def main(out: Path = HERE.parent / "docs" / "results.md") -> None:
    pictures = sorted(f"img/{path.name}" for path in (HERE.parent / "docs" / "img").glob("paper-*.png"))
    title, rest = page(results(), pictures).split("## ", 1)
    files.write(out, "\n".join([title + ZOO, *duels(entries()), "", "## " + rest]))
    print(f"written: {out}")


if __name__ == "__main__":
    exit.run(app)
