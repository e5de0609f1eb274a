"""The events that a training reports, to the progress bar of the command line or to another reporter."""

from typing import Any, Protocol

Metrics = dict[str, Any]
"""The line of an epoch in metrics.jsonl."""


class Reporter(Protocol):
    """Receives the progress of a training. The command line shows it as a progress bar."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Training of recipe `name` starts: `epochs` of `steps` optimizer steps each; `done` epochs are finished."""

    def step(self, loss: float) -> None:
        """An optimizer step was made; `loss` is that of this process's share of the batch."""

    def epoch(self, metrics: Metrics) -> None:
        """An epoch ended and its checkpoint is written; `metrics` are its line in metrics.jsonl."""


class Silent:
    """A reporter that does nothing."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Do nothing."""

    def step(self, loss: float) -> None:
        """Do nothing."""

    def epoch(self, metrics: Metrics) -> None:
        """Do nothing."""
