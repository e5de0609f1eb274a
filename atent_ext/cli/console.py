"""Progress bars and tables of the command line, with rich."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from atent_ext.core.tables import Table

if TYPE_CHECKING:  # they import torch
    from atent_ext.evaluation import journal
    from atent_ext.evaluation.certificates import Certified
    from atent_ext.evaluation.report import Report
    from atent_ext.submissions.diagnosis import Diagnosis
    from atent_ext.training.loop import Metrics


class TrainingBar:
    """A training `Reporter`: a bar over all steps, and a line per epoch with loss, clean and robust accuracy."""

    def __init__(self, console: Console) -> None:
        self.name = ""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self.task = self.progress.add_task("", total=None, now="", visible=False)

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Set the bar to all optimizer steps of one training."""
        self.name = name
        self.progress.reset(
            self.task, description=name, total=epochs * steps, completed=done * steps, now="", visible=True
        )

    def step(self, loss: float) -> None:
        """Advance by one optimizer step."""
        self.progress.update(self.task, advance=1, now=f"loss {loss:.3f}")

    def epoch(self, metrics: Metrics) -> None:
        """Print the epoch's line above the bar."""
        kept = ", kept" if metrics["selected"] else ""
        proven = f", proven {metrics['proven']:.1%}" if "proven" in metrics else ""
        self.progress.console.print(
            f"{self.name} epoch {metrics['epoch']}: loss {metrics['loss']:.4f}, validation clean "
            f"{metrics['clean']:.1%}, robust {metrics['robust']:.1%}{proven}, {metrics['seconds']:.0f} s{kept}",
            highlight=False,
            soft_wrap=True,
        )

    def scoring(self, name: str) -> None:
        """Show that `name` is being scored."""
        self.busy(f"{name}: scoring")

    def busy(self, text: str) -> None:
        """Show the current step."""
        self.progress.reset(self.task, description=text, total=None, now="", visible=True)


class ScoringBar:
    """A bar over the chunks of an evaluation, with the elapsed time, the time left, and the current attack.

    Without a terminal it prints a line per chunk instead.
    """

    def __init__(self, console: Console) -> None:
        self.terminal = console.is_terminal
        columns = (TextColumn("scoring, chunks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _TimeLeft())
        now = TextColumn("{task.fields[now]}", markup=False)
        self.progress = Progress(*columns, now, console=console, transient=True, disable=not self.terminal)
        self.task = self.progress.add_task("", total=None, now="", due=None)
        self.done: int | None = None

    def __enter__(self) -> ScoringBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def busy(self, text: str) -> None:
        """Show the current step."""
        self.progress.update(self.task, now=text)

    def progress_to(self, current: journal.Progress) -> None:
        """Show how many chunks are done and how long the others will take, which runs down by the clock in between."""
        if self.done == current.done:
            return
        left = current.left
        due = None if left is None else time.monotonic() + left
        self.progress.update(self.task, total=current.chunks, completed=current.done, due=due)
        first, self.done = self.done is None, current.done
        if current.worst is not None:
            low, high = (f"{100 * bound:.1f}" for bound in current.worst)
            self.busy(f"worst case {low} - {high} %")
            if not self.terminal:
                self.progress.console.print(f"{current.done} chunks are done, worst case {low} - {high} %")
            return
        if left is not None and (first or (left and not self.terminal)):
            text = "going on where it stopped: " if first else ""
            text += f"{current.done} of {current.chunks} chunks are done, about {_clock(left)} left"
            self.progress.console.print(text, highlight=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        due = task.fields["due"]
        return Text("time left unknown" if due is None else f"about {_clock(due - time.monotonic())} left")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, math.ceil(seconds))))


def certified_table(report: Certified) -> Table:
    """Certified accuracy at each ℓ2 radius."""
    settings = report.smoothing
    first = f"the first {report.images} test images"
    images = first if report.skip == 1 else f"{report.images} test images, one in {report.skip}"
    title = (
        f"{report.name} on {report.data}, {images}; sigma {settings['sigma']:g}, "
        f"n {settings['n']}, n0 {settings['n0']}, alpha {settings['alpha']:g}, seed {report.seed}"
    )
    table = Table("ℓ2 radius", "certified accuracy", title=title)
    for radius, accuracy in report.certified_accuracy.items():
        table.add(radius, f"{accuracy:.1%}")
        if accuracy == 0:
            break
    return table


def board_table(reports: Sequence[Report]) -> Table:
    """One row per model, one column per attack."""
    first = reports[0]
    title = (
        f"{first.data}, {first.split}; {first.threat.norm} eps {first.threat.eps:g}, seed {first.seed}; accuracy in %"
    )
    attacks = [result.attack for result in first.results]
    table = Table("model", *attacks, title=title, figures=len(attacks))
    for report in reports:
        table.add(report.name, *(f"{100 * result.accuracy:.1f}" for result in report.results))
    return table


def diagnosis_table(found: Diagnosis) -> Table:
    """One row per check of `atent check`."""
    images = found.images
    shape, count = "×".join(map(str, images["shape"])), f"{images['looked_at']} of {images['count']}"
    title = f"{found.name} ({found.model}, {found.parameters} weights) on {found.data}: {count} images {shape}"
    title += f" in [{images['lowest']:.3g}, {images['highest']:.3g}]"
    if found.right is not None:
        title += f", {found.right} of them right"
    table = Table("check", "passed", "what was found", title=title)
    for check in found.checks:
        passed = {True: "yes", False: "NO", None: ""}[check.passed]
        table.add(check.name, passed, check.said, style={True: None, False: "red", None: "dim"}[check.passed])
    return table


def estimates(found: Diagnosis) -> Iterator[str]:
    """Speed, and how long each protocol takes, in lines."""
    if found.passes:
        kinds = {"forward": "forward", "gradient": "forward and backward"}
        each = ", ".join(f"{value:.3g} {kinds[name]}" for name, value in found.passes.items())
        yield f"images a second on {found.machine['device']}, {found.machine['threads']} threads: {each}"
    known = {name: seconds for name, seconds in found.seconds.items() if seconds is not None}
    if known:
        each = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in known.items())
        yield f"about, at most, for all {found.images['count']} images in one process: {each}"


def doctor_table(report: Mapping[str, Any]) -> Table:
    """One row per package: version, whether it works, its use, what was repaired, how to install it."""
    environment = [f"Python {report['python']}", report["platform"], report["device"]]
    title = f"atent-ext {report['atent-ext']}: {', '.join(part for part in environment if part)}"
    table = Table("neighbour", "version", "does it work, and what for", title=title)
    for row in report["neighbours"]:
        style = {"ok": None, "fails": "red"}.get(row["status"], "dim")
        table.add(row["neighbour"], row["version"] or "", "\n".join(_described(row)), style=style)
    return table


def _described(row: Mapping[str, Any]) -> Iterator[str]:
    if row["status"] == "fails":
        yield f"fails: {row['reason']}"
        yield f"for {row['use']}"
    else:
        yield f"{row['status']}, for {row['use']}"
    if row["repaired"]:
        yield f"repaired: {'; '.join(row['repaired'])}"
    if row["install"]:
        yield row["install"]
