"""Run the attacks of a protocol on one set of images: a flag for each image and attack, and the worst case."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import nn

from atent_ext.attacks.accuracy import predict
from atent_ext.attacks.spec import Outcome, Setting
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.passes import Counted
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.proven import around, proven
from atent_ext.evaluation.report import Result, result_of


def run_protocol(
    model: nn.Module,
    split: Split,
    protocol: Protocol,
    setting: Setting,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run a protocol: one outcome per attack, then their worst case if there are several.

    Raises BadInput for images outside [0, 1], for labels that the model has no logit for, for an empty split, and for
    an attack that does not return one flag per image or returns a result of another kind.
    """
    with seeded(setting.seed):  # for networks that draw random numbers
        _check(model, split)
        wanted = any(spec.by_image for spec in protocol.attacks)
        of_images = proven(model, split, setting.threat, setting.batch_size) if wanted else None
    outcomes = []
    for spec in protocol.attacks:
        start = time.perf_counter()
        counted = Counted(model)
        known = of_images if spec.by_image else None
        target = around(counted, split, setting.threat, *known) if known else counted
        with seeded(setting.seed):
            outcome = _of_the_images(spec.run(target, split, setting), spec.attack, len(split))
        count = int(known[0].sum()) if known else 0
        seconds = time.perf_counter() - start
        outcomes.append(replace(outcome, seconds=seconds, passes=counted.forward_passes, proven=count))
        report(outcomes[-1])
    if len(outcomes) > 1:
        outcomes.append(worst_case(outcomes))
        report(outcomes[-1])
    return outcomes


def worst_case(outcomes: list[Outcome]) -> Outcome:
    """The worst case: an image counts as correct only if it is correct in every outcome."""
    flags = reduce(torch.logical_and, [outcome.flags for outcome in outcomes])
    over = ", ".join(outcome.attack for outcome in outcomes)
    seconds, passes = sum(outcome.seconds for outcome in outcomes), total([outcome.passes for outcome in outcomes])
    return Outcome(
        "worst_case",
        "worst case",
        {"over": over},
        flags,
        seconds,
        passes=passes,
        proven=max(outcome.proven for outcome in outcomes),
    )


def total(passes: Sequence[int | None]) -> int | None:
    """The sum of passes; None if any is unknown."""
    known = [count for count in passes if count is not None]
    return sum(known) if len(known) == len(passes) else None


def worst_of(results: Sequence[Result]) -> Result:
    """The worst case of finished results, each with its flags. Evidence of others took no passes."""
    outcomes = [
        Outcome(
            result.kind,
            result.attack,
            result.settings,
            result.robust(),
            result.seconds,
            passes=0 if result.kind == "evidence" else result.passes,
            proven=result.proven,
        )
        for result in results
    ]
    return result_of(worst_case(outcomes))


def _of_the_images(outcome: Outcome, attack: str, count: int) -> Outcome:
    """The outcome of an attack, which may be another package's, if its kind is its own and its flags are (count,) bool.

    Only the attack "clean" has the kind "clean", and only "autoattack" the kind "autoattack".
    """
    kind = attack if attack in ("clean", "autoattack") else "attack"
    if outcome.kind != kind:
        message = f"attack {attack!r} returned a result of kind {outcome.kind!r}; {kind!r} is needed"
        raise BadInput(message, code="bad-value", field="attack")
    flags = outcome.flags
    if flags.shape != (count,) or flags.dtype is not torch.bool:
        message = f"attack {attack!r} returned flags {tuple(flags.shape)} of {flags.dtype}; ({count},) bool is needed"
        raise BadInput(message, code="bad-shape", field="attack")
    return outcome


def _check(model: nn.Module, split: Split) -> None:
    if not len(split):
        raise BadInput("there are no images to evaluate on; give at least one", code="bad-shape", field="images")
    validate.images(split.images, 0.0, 1.0)
    validate.labels(split.labels, len(split.images), predict(model, split.images[:1]).shape[1])
