"""What the command line shows: progress bars and tables, on rich."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from atent_ext.scoring import Report
from atent_ext.training import Metrics


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

    def __enter__(self) -> "TrainingBar":
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
        self.progress.console.print(
            f"{self.name} epoch {metrics['epoch']}: loss {metrics['loss']:.4f}, validation clean "
            f"{metrics['clean']:.1%}, robust {metrics['robust']:.1%}, {metrics['seconds']:.0f} s{kept}",
            highlight=False,
            soft_wrap=True,
        )

    def scoring(self, name: str) -> None:
        """Show that `name` is being scored."""
        self.busy(f"{name}: scoring")

    def busy(self, text: str) -> None:
        """Show what is being done."""
        self.progress.reset(self.task, description=text, total=None, now="", visible=True)


def report_table(report: Report) -> Table:
    """One row per attack: correct, accuracy, 95 % interval, seconds."""
    threat = report["threat"]
    title = (
        f"{report['name']} on {report['data']}, {report['split']}; {threat['norm']} eps {threat['eps']:g}, "
        f"protocol {report['protocol']}, seed {report['seed']}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("attack", "correct", "accuracy", "95 % interval", "seconds"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for result in report["results"]:
        low, high = result["interval95_wilson"]
        correct = f"{result['correct']}/{result['n']}"
        share = f"{result['accuracy']:.2%}"
        table.add_row(result["attack"], correct, share, f"{low:.1%} - {high:.1%}", f"{result['seconds']:.1f}")
    return table


def certified_table(report: Report) -> Table:
    """Certified accuracy at each ℓ2 radius."""
    used = report["smoothing"]
    title = (
        f"{report['name']} on {report['data']}, the first {report['images']} test images; sigma {used['sigma']:g}, "
        f"n {used['n']}, n0 {used['n0']}, alpha {used['alpha']:g}, seed {report['seed']}"
    )
    table = Table("ℓ2 radius", "certified accuracy", title=title, title_justify="left")
    for radius, accuracy in report["certified_accuracy"].items():
        table.add_row(radius, f"{accuracy:.1%}")
        if accuracy == 0:
            break
    return table


def board_table(reports: Sequence[Report]) -> Table:
    """One row per model, one column per attack."""
    threat = reports[0]["threat"]
    title = (
        f"{reports[0]['data']}, {reports[0]['split']}; {threat['norm']} eps {threat['eps']:g}, "
        f"seed {reports[0]['seed']}; accuracy in %"
    )
    table = Table("model", title=title, title_justify="left")
    for result in reports[0]["results"]:
        table.add_column(result["attack"], justify="right")
    for report in reports:
        table.add_row(report["name"], *(_percent(result) for result in report["results"]))
    return table


def notes(reports: Sequence[Report]) -> list[str]:
    """Everything that the reports' attacks had to say, once."""
    return sorted({note for report in reports for result in report["results"] for note in result["notes"]})


def _percent(result: dict[str, Any]) -> str:
    return f"{100 * result['accuracy']:.1f}"
