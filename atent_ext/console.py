"""What the command line shows: progress bars and tables, on rich."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from atent_ext.evaluation import Outcome, interval
from atent_ext.training import Metrics


class TrainingBar:
    """A training `Reporter`: a bar over all steps, and a line per epoch with loss, clean and robust accuracy."""

    def __init__(self, console: Console, label: str) -> None:
        self.console, self.label = console, label
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)

    def __enter__(self) -> "TrainingBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Set the bar's length to all optimizer steps."""
        self.task = self.progress.add_task(self.label, total=epochs * steps, completed=done * steps, loss="")

    def step(self, loss: float) -> None:
        """Advance by one optimizer step."""
        self.progress.update(self.task, advance=1, loss=f"loss {loss:.3f}")

    def epoch(self, metrics: Metrics) -> None:
        """Print the epoch's line above the bar."""
        kept = "  kept" if metrics["selected"] else ""
        self.progress.console.print(
            f"{self.label} epoch {metrics['epoch']}: loss {metrics['loss']:.4f}, validation clean "
            f"{metrics['clean']:.1%}, robust {metrics['robust']:.1%} ({metrics['seconds']:.0f} s){kept}",
            highlight=False,
        )


def outcomes_table(title: str, outcomes: Iterable[Outcome]) -> Table:
    """One row per attack: correct, accuracy, 95 % interval, seconds."""
    table = Table(title=title, title_justify="left")
    for name in ("attack", "correct", "accuracy", "95 % interval", "seconds"):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    return table


def _cells(outcome: Outcome) -> Sequence[str]:
    right, count = int(outcome.flags.sum()), len(outcome.flags)
    low, high = interval(right, count)
    name = outcome.attack + (" *" if outcome.notes else "")
    return name, f"{right}/{count}", f"{right / count:.2%}", f"{low:.1%} - {high:.1%}", f"{outcome.seconds:.1f}"
