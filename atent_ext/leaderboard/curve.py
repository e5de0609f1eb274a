"""Where the marks of a card's curves lie in their picture; the page's template draws them as inline SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from atent_ext.leaderboard.ranking import Entry, eps_text

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 20, 24, 44
_APART = 40
"""Between the labels of two ticks, at least."""
_FAR = 4
"""A curve that goes on beyond so many eps is drawn over the square root of eps, else its start is one line."""


@dataclass(frozen=True)
class Mark:
    """A point or a tick in the picture, and what it says."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """The accuracy under one attack; `path` are the points of a polyline."""

    attack: str
    points: tuple[Mark, ...]
    path: str


@dataclass(frozen=True)
class Drawing:
    """The curves of a card.

    radius: where the threat model's eps lies; worst, low, high: heights of the worst case there and of its interval;
    root: whether eps is drawn as its square root.
    """

    lines: tuple[Line, ...]
    across: tuple[Mark, ...]
    up: tuple[Mark, ...]
    radius: float
    worst: float
    low: float
    high: float
    root: bool


def draw(entry: Entry) -> Drawing | None:
    """The drawing of a card's curves, None if it has none."""
    if entry.curve is None:
        return None
    eps, threat = entry.curve.eps, entry.card.submission.threat
    root = max(eps) > _FAR * threat.eps > 0
    x = _scale(max(*eps, threat.eps), root)
    ticks = [Mark(x(one), HEIGHT - _BOTTOM, eps_text(one)) for one in sorted({*eps, threat.eps})]
    low, high = entry.worst.interval95_wilson
    return Drawing(
        lines=tuple(_line(attack, eps, shares, x) for attack, shares in entry.curve.accuracy.items()),
        across=_spaced(ticks, x(threat.eps)),
        up=tuple(Mark(_LEFT, _y(share / 100), str(share)) for share in range(0, 101, 25)),
        radius=x(threat.eps),
        worst=_y(entry.worst.accuracy),
        low=_y(low),
        high=_y(high),
        root=root,
    )


def _line(attack: str, eps: Sequence[float], shares: Sequence[float], x: Callable[[float], float]) -> Line:
    pairs = sorted(zip(eps, shares, strict=True))
    points = tuple(
        Mark(x(one), _y(share), f"{attack}, eps {eps_text(one)}: {100 * share:.1f} %") for one, share in pairs
    )
    return Line(attack, points, " ".join(f"{point.x:g},{point.y:g}" for point in points))


def _spaced(ticks: list[Mark], kept: float) -> tuple[Mark, ...]:
    """The ticks with those labels left out that would run into another one; never the label at `kept`."""
    shown: list[float] = [kept]
    labelled = []
    for tick in ticks:
        room = tick.x == kept or all(abs(tick.x - other) >= _APART for other in shown)
        labelled.append(tick if room else Mark(tick.x, tick.y, ""))
        shown += [tick.x] if room else []
    return tuple(labelled)


def _scale(furthest: float, root: bool) -> Callable[[float], float]:
    def x(eps: float) -> float:
        share = eps / furthest if furthest else 0.0
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (sqrt(share) if root else share), 1)

    return x


def _y(share: float) -> float:
    return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - share), 1)
