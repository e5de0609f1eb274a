"""Small studies for tests."""

from torch import nn

from atent_ext.experiments import study
from atent_ext.experiments.study import Study

SMALL = ("epochs=1", "validation.count=60", "validation.steps=2")


def tiny(**more):
    """A study of two networks on digits that takes a second."""
    given = {
        "name": "tiny",
        "title": "Tiny",
        "columns": (
            {"name": "benign", "attack": {"attack": "clean"}},
            {"name": "PGD", "attack": {"attack": "pgd", "steps": 2}, "slow": True},
            {"name": "half", "attack": {"attack": "pgd", "steps": 2}, "share": 0.5},
        ),
        "rows": (
            {"name": "SGD", "recipe": "linf-sgd", "paper": {"benign": 90.0}},
            {"name": "tuned", "recipe": "linf-sgd", "after": "SGD", "skip": {"half": "no time"}},
            {"name": "theirs", "quoted": "not ours", "paper": {"PGD": 50.0}},
        ),
        "scales": {
            "smoke": {
                "recipes": "digits-{recipe}",
                "set": SMALL,
                "n": 20,
                "slow": 10,
                "images": {"half": 7},
                "differs": "all of it",
            }
        },
    }
    return Study.model_validate(given | more)


class DigitsNet(nn.Sequential):
    """A network for digits of a third of the cost of `digits-cnn`."""

    def __init__(self, classes=10, channels=1):
        convolution = nn.Conv2d(channels, 16, 3, stride=2, padding=1)
        super().__init__(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, classes))


def lighter(whole):
    """A shipped study at the scale `smoke` for less: a third of the inner steps, three times as long.

    Its long curves have a half or a third of the radii, its figures a third of the images and half of the updates.
    """
    scale = whole.at("smoke")
    if whole.kind == "figure":
        scale = scale.model_copy(update={"n": scale.n // 3, "updates": scale.updates // 2})
    rows = tuple(_fewer_steps(whole, row) for row in whole.rows)
    curves = tuple(axis.model_copy(update={"by": axis.by * _apart(len(axis.radii()))}) for axis in whole.curves)
    return whole.model_copy(update={"scales": {"smoke": scale}, "rows": rows, "curves": curves})


def _apart(radii):
    return 3 if radii > 12 else 2 if radii > 9 else 1


def _fewer_steps(whole, row):
    if row.recipe is None or "steps" not in (objective := study.recipe_of(whole, row, "smoke").objective):
        return row
    fewer = [f"objective.steps={max(1, objective['steps'] // 3)}"]
    if "step_size" in objective:
        fewer.append(f"objective.step_size={3 * objective['step_size']}")
    return row.model_copy(update={"set": {"smoke": (*row.set.get("smoke", ()), *fewer)}})
