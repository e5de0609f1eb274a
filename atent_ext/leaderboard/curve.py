"""The coordinates of a card's accuracy curves; the page's template draws them as inline SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from atent_ext.leaderboard.ranking import Entry, eps_text

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 20, 24, 44
_LABEL_GAP = 40
"""Least distance between the labels of two ticks, in pixels."""
_LINEAR = 4
"""A curve up to more than this multiple of eps gets a square-root axis, so that small radii stay readable."""


@dataclass(frozen=True)
class Mark:
    """A point or a tick in the picture, in pixels, and its label."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """The accuracy under one attack. path: the points attribute of an SVG polyline."""

    attack: str
    points: tuple[Mark, ...]
    path: str


@dataclass(frozen=True)
class Drawing:
    """The curves of a card.

    across, up: the ticks of the horizontal and the vertical axis. radius: x of the threat model's eps. worst, low,
    high: y of the worst case and of its 95 % interval. root: whether the eps axis is a square-root scale.
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
    root = max(eps) > _LINEAR * threat.eps > 0
    x = _scale(max(*eps, threat.eps), root)
    ticks = [Mark(x(value), HEIGHT - _BOTTOM, eps_text(value)) for value in sorted({*eps, threat.eps})]
    low, high = entry.worst.interval95
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
        Mark(x(value), _y(share), f"{attack}, eps {eps_text(value)}: {100 * share:.1f} %") for value, share in pairs
    )
    return Line(attack, points, " ".join(f"{point.x:g},{point.y:g}" for point in points))


def _spaced(ticks: list[Mark], kept: float) -> tuple[Mark, ...]:
    """The ticks without the labels that would overlap another one; the label at x = `kept` always stays."""
    shown: list[float] = [kept]
    labelled = []
    for tick in ticks:
        room = tick.x == kept or all(abs(tick.x - other) >= _LABEL_GAP for other in shown)
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
