"""Decision boundaries of small nets trained on two classes of images in a t-SNE plane, by method (v2 Fig. 1)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.accuracy import clean_flags, predict, robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting as AttackSetting
from atent_ext.core import registry, seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import norm
from atent_ext.core.schema import Threat
from atent_ext.core.statistics import interval
from atent_ext.core.types import Objective
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.figures import plots
from atent_ext.objectives import ATENT, PGDAT, TRADES, Standard

_SOURCES = ("digits", "mnist")
_HELD_OUT = 0.3


@dataclass(frozen=True)
class Setting:
    """Threat model, inner loop, and how the nets are trained: `updates` steps of SGD with momentum 0.9.

    eps: ℓ∞ radius in units of the plane, whose sides run over `box`. steps, step_size: of the inner loops and of the
    PGD that measures. beta: of TRADES.
    """

    eps: float = 1.0
    steps: int = 40
    step_size: float = 0.1
    beta: float = 8.0
    box: tuple[float, float] = (-10.0, 10.0)
    lr: float = 0.02
    updates: int = 400
    batch_size: int = 64

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """The training methods by name. Raises BadInput for invalid values."""
        inner: dict[str, Any] = {"eps": self.eps, "steps": self.steps, "step_size": self.step_size, "box": self.box}
        trades = TRADES(beta=self.beta, **inner)
        return {"SGD": Standard(), "PGD-AT": PGDAT(**inner), "TRADES": trades, "ATENT": ATENT(**inner)}


@dataclass(frozen=True, eq=False)
class Pair:
    """Images (N, C, H, W) of two classes, labelled 0 and 1; `classes` are their names, `source` their data set."""

    source: str
    classes: tuple[str, str]
    images: Tensor
    labels: Tensor


class PlaneNet(nn.Module):
    """Three layers on points (N, 2): Conv1d over the two coordinates, two fully connected ones; logits (N, 2)."""

    def __init__(self, channels: int = 32, hidden: int = 64) -> None:
        super().__init__()
        layers = [nn.Conv1d(1, channels, 2), nn.ReLU(), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Points (N, 2) in the box of the plane to logits (N, 2)."""
        logits: Tensor = self.layers(x[:, None] / 10)
        return logits


@dataclass(frozen=True, eq=False)
class Study:
    """Held-out points, the nets by method, which points each classifies correctly under attack (`robust`), a report."""

    held_out: Split
    nets: Mapping[str, nn.Module]
    robust: Mapping[str, Tensor]
    setting: Setting
    report: dict[str, Any]


def two_classes(source: str, n: int, root: Path | None = None, classes: tuple[int, int] = (5, 8)) -> Pair:
    """The first `n` images, or as many as there are, of each of two classes of "digits" or "mnist".

    They come from the training and test images of the digits, or from the training images of MNIST. Raises BadInput for
    another source and for a missing data set.
    """
    if source not in _SOURCES:
        raise registry.nearest("data set of this figure", source, _SOURCES)
    validate.steps("n", n)
    loaded = datasets.load(source, root)
    parts = (loaded.train, loaded.test) if source == "digits" else (loaded.train,)
    images, labels = torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])
    chosen = [(labels == label).nonzero().squeeze(1)[:n] for label in classes]
    which = torch.cat([torch.full_like(indices, k) for k, indices in enumerate(chosen)])
    first, second = (loaded.classes[label] for label in classes)
    return Pair(source, (first, second), images[torch.cat(chosen)], which)


def embed(pair: Pair, box: tuple[float, float] = (-10.0, 10.0), seed: int = 0) -> Split:
    """t-SNE of the images: points (N, 2), scaled alike on both axes so that the longer side fills the box.

    Raises BadInput for fewer than 20 images, too few for the perplexity of t-SNE.
    """
    from sklearn.manifold import TSNE

    validate.seed(seed)
    count = len(pair.labels)
    if count < 20:
        message = f"there are {count} images; a t-SNE plane needs at least 20, so ask for 10 or more per class"
        raise BadInput(message, code="bad-value", field="n")
    perplexity = min(30.0, (count - 1) / 3)
    flat = pair.images.flatten(1).numpy()
    drawn = seeds.derived(seed, 32)
    embedded = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=drawn).fit_transform(flat)
    points = torch.from_numpy(embedded).float()
    low, high = points.amin(0), points.amax(0)
    scaled = (points - (low + high) / 2) * ((box[1] - box[0]) / (high - low).max()) + sum(box) / 2
    return Split(scaled.clamp(*box), pair.labels)


def train(objective: Objective, points: Split, setting: Setting, seed: int = 0) -> PlaneNet:
    """Train a net on points (N, 2) with any objective. The seed fixes initial weights, batches and noise."""
    with seeded(seed):
        net = PlaneNet()
    optimizer = torch.optim.SGD(net.parameters(), setting.lr, momentum=0.9)
    generator = seeds.generator(seed)
    for _ in range(setting.updates):
        batch = torch.randint(len(points), (setting.batch_size,), generator=generator)
        optimizer.zero_grad()
        for term in objective(net, points.images[batch], points.labels[batch], generator=generator):
            term.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


def study(pair: Pair, setting: Setting, seed: int = 0) -> Study:
    """Embed the images, train a net by each method on 70 % of the points, and measure on the other 30 %.

    The split is stratified. `report` holds the accuracies with n, seed and setting. Raises BadInput as `embed` does.
    """
    points = embed(pair, setting.box, seed)
    rest, held_out = datasets.hold_out(points, round(_HELD_OUT * len(points)), seed)
    nets = {name: train(objective, rest, setting, seed) for name, objective in setting.objectives.items()}
    clean = {name: clean_flags(net, held_out) for name, net in nets.items()}
    robust = {name: _robust(net, held_out, setting, seed) for name, net in nets.items()}
    report = {
        "figure": "plane",
        "dataset": pair.source,
        "classes": list(pair.classes),
        "seed": seed,
        "setting": asdict(setting),
        "n_train": len(rest),
        "n_test": len(held_out),
        "methods": {name: {"clean": _share(clean[name]), "robust": _share(robust[name])} for name in nets},
    }
    return Study(held_out, nets, robust, setting, report)


def _robust(net: nn.Module, points: Split, setting: Setting, seed: int) -> Tensor:
    threat = Threat(norm="Linf", eps=setting.eps)
    kernel = pgd(norm("Linf"), setting.eps, setting.steps, setting.step_size, box=setting.box)
    return robust_flags(net, points, kernel, AttackSetting(threat, seed))


def _share(flags: Tensor) -> dict[str, Any]:
    right, count = int(flags.sum()), len(flags)
    return {"correct": right, "n": count, "accuracy": right / count, "interval95_wilson": list(interval(right, count))}


def chart(study: Study) -> Any:
    """A matplotlib Figure: one panel per method with its decision regions and the held-out points.

    Circles and triangles are the two classes; filled points are misclassified under PGD or without an attack.
    """
    figure, grid = plots._figure(8.4, 9.2, 2, 2, sharex=True, sharey=True)
    for axes, (name, net) in zip(grid.flat, study.nets.items(), strict=True):
        _regions(axes, net, study.setting.box)
        _points(axes, study.held_out, study.robust[name])
        shares = {key: value["accuracy"] for key, value in study.report["methods"][name].items()}
        axes.set_title(
            f"{name}: clean {100 * shares['clean']:.1f} %, robust {100 * shares['robust']:.1f} %", fontsize=10
        )
    for axes in grid[1]:
        axes.set_xlabel("t-SNE coordinate 1 (scaled)")
    for axes in grid[:, 0]:
        axes.set_ylabel("t-SNE coordinate 2 (scaled)")
    figure.legend(handles=_legend(study), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw(study: Study, path: Path) -> list[Path]:
    """Save `chart(study)` to `path` and the `.svg` beside it; returns both."""
    return plots.save(chart(study), path)


_MARKERS = ("o", "^")
_REGIONS = ("white", "0.87")


def _regions(axes: Any, net: nn.Module, box: tuple[float, float], points: int = 201) -> None:
    side = torch.linspace(*box, points)
    y, x = torch.meshgrid(side, side, indexing="ij")
    logits = predict(net, torch.stack([x.flatten(), y.flatten()], 1), points * points)
    score = (logits[:, 1] - logits[:, 0]).reshape(points, points)
    if plots.level_line(axes, side, side, score, 0.0, colors="black", linewidths=1.4):
        levels = [float(score.min()), 0.0, float(score.max())]
        axes.contourf(side.numpy(), side.numpy(), score.numpy(), levels=levels, colors=_REGIONS)
    else:
        axes.set_facecolor(_REGIONS[int(score[0, 0] > 0)])
    axes.set(xlim=box, ylim=box, aspect="equal")
    axes.locator_params(nbins=4)


def _points(axes: Any, points: Split, robust: Tensor) -> None:
    style = {"color": "black", "linestyle": "none", "markersize": 5, "markeredgewidth": 0.8, "clip_on": False}
    for label, marker in enumerate(_MARKERS):
        for right, fill in ((True, "none"), (False, "full")):
            chosen = points.images[(points.labels == label) & (robust == right)]
            if len(chosen):  # an unclipped line of no points would take all the room of the layout
                axes.plot(chosen[:, 0].numpy(), chosen[:, 1].numpy(), marker, fillstyle=fill, **style)


def _legend(study: Study) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dot: dict[str, Any] = {"linestyle": "none", "color": "black"}
    attack = f"PGD-{study.setting.steps}, ℓ∞ eps {study.setting.eps:g}"
    names = study.report["classes"]
    points = [Line2D([], [], marker=_MARKERS[k], fillstyle="none", label=f"class {names[k]}", **dot) for k in (0, 1)]
    areas = [Patch(facecolor=_REGIONS[k], edgecolor="black", label=f"predicted {names[k]}") for k in (0, 1)]
    return [*points, *areas, Line2D([], [], marker="s", label=f"filled: wrong under {attack}", **dot)]
