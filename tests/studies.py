"""A small study for tests."""

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
