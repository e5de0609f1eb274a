"""v1 Table 1: the time of a training step of each method, relative to standard training."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from atent_ext.core import seeds
from atent_ext.core.model_state import seeded
from atent_ext.experiments.rows import Context
from atent_ext.experiments.study import Study
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import build_model, load_data

WARMUP = 1


def fill(result: dict[str, Any], study: Study, context: Context) -> None:
    """Add to each row its seconds per step and the ratio to the first row, as median and range over the rounds.

    In every round each row takes one step, so that a change in the speed of the machine affects all rows alike.
    """
    rounds = study.at(context.scale).n
    steps = {row.name: _stepper(context.recipe(study, row), context) for row in study.rows_at(context.scale)}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(WARMUP + rounds):
        context.busy(f"{study.name}: round {turn + 1} of {WARMUP + rounds}")
        for name, step in steps.items():
            start = time.perf_counter()
            with seeded(turn):  # dropout uses the global random state
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    first = next(iter(taken.values()))[WARMUP:]
    paper = next(study.rows_at(context.scale)).paper.get("seconds")
    for row in result["rows"]:
        own = taken[row["name"]][WARMUP:]
        ratios = sorted(mine / theirs for mine, theirs in zip(own, first, strict=True))
        row["seconds_a_step"] = {"median": median(own), "least": min(own), "most": max(own), "rounds": rounds}
        row["ratio"] = {"median": median(ratios), "least": ratios[0], "most": ratios[-1]}
        row["paper_ratio"] = row["paper"]["seconds"] / paper if paper and "seconds" in row["paper"] else None


def _stepper(recipe: Recipe, context: Context) -> Callable[[], None]:
    """A function that takes one optimizer step of the recipe on the first batch of its data set, as `fit` does."""
    images = load_data(recipe, context.root, context.download)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = images.train.take(recipe.batch_size)
    x, y = batch.images.to(device), batch.labels.to(device)
    with seeded(recipe.seed):
        model = build_model(recipe, images).to(device).train()
    objective, optimizer = recipe.build_objective(), recipe.optimizer.build(model.parameters())
    generator = seeds.generator(recipe.seed, device)

    def closure() -> float:
        optimizer.zero_grad()
        loss = 0.0
        for term in objective(model, x, y, generator=generator):
            term.backward()  # type: ignore[no-untyped-call]
            loss += float(term.detach())
        return loss

    def step() -> None:
        if recipe.optimizer.needs_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    return step
