"""Figures with matplotlib, drawn without a display and readable in black and white."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atent_ext.attacks.accuracy import predict, robust_flags
from atent_ext.attacks.langevin import last_iterate, pgd
from atent_ext.attacks.spec import Setting
from atent_ext.core import seeds
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import device_of, evaluating
from atent_ext.core.norms import norm
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.storage import files

_MARKERS = "osD^vP*X"
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """Accuracy in [0, 1] of one model at each radius."""

    name: str
    radii: Sequence[float]
    accuracy: Sequence[float]


def accuracy_curve(
    name: str, model: nn.Module, split: Split, threat: Threat, radii: Sequence[float], steps: int = 20, seed: int = 0
) -> Curve:
    """Accuracy under PGD of `steps` steps of 2.5 eps / steps at each radius; at 0 it is the clean accuracy."""
    accuracy = []
    for eps in radii:
        kernel = pgd(norm(threat.norm), eps, steps)
        flags = robust_flags(model, split, kernel, Setting(threat, seed))
        accuracy.append(float(flags.double().mean()))
    return Curve(name, tuple(radii), tuple(accuracy))


def draw_curves(curves: Sequence[Curve], threat: Threat, title: str, path: Path) -> None:
    """Plot accuracy against eps, one line per model; a line marks the radius of training unless it is 0."""
    figure, axes = _figure(6.4, 4.2)
    for position, curve in enumerate(curves):
        style = {"marker": _MARKERS[position % len(_MARKERS)], "linestyle": _LINES[position % len(_LINES)]}
        axes.plot(curve.radii, [100 * a for a in curve.accuracy], label=curve.name, markersize=4, **style)
    if threat.eps:
        axes.axvline(threat.eps, color="0.6", linewidth=1)
        axes.annotate(
            f"trained for {threat.eps:g}",
            (threat.eps, 101),
            ha="center",
            va="bottom",
            color="0.4",
            fontsize=8,
            annotation_clip=False,
        )
    axes.set(xlabel=f"eps ({_pretty(threat.norm)})", ylabel="accuracy under attack (%)", ylim=(0, 100))
    axes.set_title(title, fontsize=10, pad=16)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, path)


@dataclass(frozen=True)
class Portrait:
    """An image and its adversarial example, both (C, H, W), with the predicted class and its probability for each."""

    clean: Tensor
    adversarial: Tensor
    before: tuple[int, float]
    after: tuple[int, float]


def portrait(model: nn.Module, split: Split, position: int, threat: Threat, steps: int = 40, seed: int = 0) -> Portrait:
    """Attack image `position` of `split` with PGD of `steps` steps."""
    x, y = split.images[position : position + 1], split.labels[position : position + 1]
    kernel = pgd(norm(threat.norm), threat.eps, steps)
    device = device_of(model)
    generator = seeds.generator(seed, device)
    with evaluating(model):
        adversary = last_iterate(kernel, model, x.to(device), y.to(device), cross_entropy, generator).cpu()
    return Portrait(x[0], adversary[0], _verdict(model, x), _verdict(model, adversary))


def draw_portraits(rows: Mapping[str, Sequence[Portrait]], classes: Sequence[str], title: str, path: Path) -> None:
    """Draw one row per name; per image: the clean image, the perturbation, and the adversarial example with its class.

    A perturbation is scaled by its largest pixel. The caption is bold if the prediction changes.
    """
    images = len(next(iter(rows.values())))
    figure, grid = _figure(1.35 * 3 * images + 0.8, 1.55 * len(rows) + 0.6, rows=len(rows), columns=3 * images)
    for line, (name, portraits) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for position, shown in enumerate(portraits):
            clean, change, adversary = line[3 * position : 3 * position + 3]
            fooled = shown.after[0] != shown.before[0]
            _show(clean, shown.clean, 0, 1, _caption(classes, shown.before))
            added = shown.adversarial - shown.clean
            most = float(added.abs().max()) or 1.0
            _show(change, added, -most, most, "perturbation")
            _show(adversary, shown.adversarial, 0, 1, _caption(classes, shown.after), "bold" if fooled else "normal")
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _verdict(model: nn.Module, x: Tensor) -> tuple[int, float]:
    probability, label = predict(model, x).softmax(1).max(1)
    return int(label), float(probability)


def _caption(classes: Sequence[str], verdict: tuple[int, float]) -> str:
    return f"{classes[verdict[0]]} ({verdict[1]:.0%})"


def _show(axes: Any, image: Tensor, low: float, high: float, caption: str, weight: str = "normal") -> None:
    pixels = ((image - low) / (high - low)).clamp(0, 1).movedim(0, -1)
    axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(caption, fontsize=8, fontweight=weight)


def _pretty(name: str) -> str:
    return {"Linf": "ℓ∞", "L2": "ℓ2"}[name]


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    # Figure, not pyplot: no global state changes and no display is needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes[0][0] if rows == columns == 1 and not options else axes


def level_line(axes: Any, x: Tensor, y: Tensor, values: Tensor, level: float, **style: Any) -> bool:
    """Draw the contour of `values` (len(y), len(x)) at `level`. Returns whether there is one."""
    crossed = float(values.min()) < level < float(values.max())
    if crossed:
        axes.contour(x.numpy(), y.numpy(), values.numpy(), levels=[level], **style)
    return crossed


def both(path: Path) -> list[Path]:
    """The paths of a figure: `path` and the `.svg` beside it, without duplicates.

    Raises BadInput unless `path` ends in .png, .pdf or .svg.
    """
    if path.suffix not in _METADATA:
        message = f"{path} ends in {path.suffix!r}; a figure ends in {', '.join(_METADATA)}"
        raise BadInput(message, code="bad-value", field="path")
    return list(dict.fromkeys([path, path.with_suffix(".svg")]))


def save(figure: Any, path: Path) -> list[Path]:
    """Write a figure to `path`, in the format of its suffix, and to the `.svg` beside it. Returns the paths.

    The folder is created if needed. The same figure gives the same bytes. Raises BadInput as `both` does, NotWritten as
    `files.write` does.
    """
    written = both(path)
    for target in written:
        _save(figure, target)
    return written


# Without dates, and with a fixed salt for the ids in an SVG, the same figure gives the same bytes.
_METADATA: Mapping[str, dict[str, Any]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context

    drawn = BytesIO()
    with rc_context({"svg.hashsalt": "atent-ext"}):
        figure.savefig(drawn, dpi=150, format=path.suffix[1:], metadata=_METADATA.get(path.suffix))
    files.write(path, drawn.getvalue())
