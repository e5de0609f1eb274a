"""Lines in a plane, as coordinates for inline SVG: curves of training, accuracy against eps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atent_ext.leaderboard.curve import HEIGHT, WIDTH, Line, Mark

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 24, 44
_TICKS = 5
"""Most ticks of the horizontal axis."""

Series = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Chart:
    """A picture of lines. title: what the vertical axis is. below: what the horizontal axis is."""

    title: str
    below: str
    lines: tuple[Line, ...]
    across: tuple[Mark, ...]
    up: tuple[Mark, ...]
    width: int = WIDTH
    height: int = HEIGHT


def draw(title: str, below: str, series: Series, top: float | None = None) -> Chart:
    """The chart of named series of (x, y), y from 0 to `top`; None: to the largest value."""
    points = [point for those in series.values() for point in those]
    xs = sorted({x for x, _ in points})
    most = top or max((y for _, y in points), default=1.0) or 1.0

    def mark(x: float, y: float, text: str) -> Mark:
        share = (x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * share
        return Mark(round(across, 1), round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - y / most), 1), text)

    def line(name: str, those: Sequence[tuple[float, float]]) -> Line:
        marks = tuple(mark(x, y, f"{name}, {below} {x:g}: {y:.4g}") for x, y in those)
        return Line(name, marks, " ".join(f"{one.x:g},{one.y:g}" for one in marks))

    every = max(1, -(-len(xs) // _TICKS))
    return Chart(
        title=title,
        below=below,
        lines=tuple(line(name, those) for name, those in series.items()),
        across=tuple(mark(x, 0, f"{x:.3g}") for x in xs[::every]),
        up=tuple(mark(xs[0], most * part / 4, f"{most * part / 4:.3g}") for part in range(5)) if xs else (),
    )
