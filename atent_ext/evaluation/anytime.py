"""Evaluations that stop early: images are scored in random order, and an interval is checked after every chunk.

The intervals are valid at all moments at once (`core.sequential`), however often they are checked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelerate import PartialState

from atent_ext.core import processes, validate
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.chunks import Chunk
from atent_ext.evaluation.drawn import Drawn
from atent_ext.evaluation.journal import Journal, Record
from atent_ext.evaluation.report import Report


@dataclass(frozen=True)
class Until:
    """When to stop. reached: why a report is enough, "" if it is not. width, tolerance: as in `Drawn`."""

    reached: Callable[[Report], str]
    width: float | None = None
    tolerance: float | None = None

    def drawn(self, ended: str = "it goes on") -> Drawn:
        """The field of the report."""
        return Drawn(width=self.width, tolerance=self.tolerance, ended=ended)


def until_width(points: float) -> Until:
    """Stop when the interval of the worst case is `points` percentage points wide; BadInput outside (0, 100]."""
    validate.number("until_width", points)
    if not 0 < points <= 100:
        message = f"until_width is {points:g}; it is the width of the interval in points, above 0 and at most 100"
        raise BadInput(message, code="bad-value", field="until_width")

    def reached(report: Report) -> str:
        low, high = report.worst.interval95
        narrow = 100 * (high - low) <= points + 1e-9
        return f"the interval of {report.worst.attack!r} is at most {points:g} points wide" if narrow else ""

    return Until(reached, width=float(points))


def ended(report: Report, until: Until, most: int) -> str:
    """Why a report is enough, "" if it is not. most: the number of images that may be scored."""
    everything = "all are scored" if report.n == report.total else f"n is {report.n}"
    return until.reached(report) or (everything if report.n >= most else "")


def as_ended(report: Report, until: Until, most: int) -> Report | None:
    """A report that says that it ended by `until`; None if it is not enough. most: as in `ended`."""
    why = ended(report, until, most)
    return report.model_copy(update={"drawn": until.drawn(why)}) if why else None


def score(
    journal: Journal,
    missing: Sequence[Chunk],
    share: Callable[[list[Chunk]], None],
    report: Callable[[list[Record]], Report],
    until: Until,
    team: PartialState,
    look: Callable[[Report], None],
) -> Report | None:
    """Score the chunks in turn, as many at once as there are processes, until a report is enough; the main process's.

    missing: those that are not in the journal. report: of the first chunks. look: called with each report. The report
    ends with the first chunk after which it is enough, also if other processes have scored some beyond it; those stay
    in the journal.
    """
    chunks, records = journal.chunks, list[Record]()
    for begin in range(0, len(chunks), team.num_processes):
        turn = chunks[begin : begin + team.num_processes]
        share([chunk for chunk in turn if chunk in missing])
        found = _first_enough(journal, turn, records, report, until, look) if team.is_main_process else None
        if processes.from_main(team, found is not None):
            return found
    return None


def _first_enough(
    journal: Journal,
    turn: Sequence[Chunk],
    records: list[Record],
    report: Callable[[list[Record]], Report],
    until: Until,
    look: Callable[[Report], None],
) -> Report | None:
    """Append the records of the turn until a report of them is enough."""
    for chunk in turn:
        records += journal.collect([chunk])
        current = report(records)
        look(current)
        if (found := as_ended(current, until, journal.chunks[-1].stop)) is not None:
            return found
    return None
