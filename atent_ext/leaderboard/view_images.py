"""The part of `atent view` that needs the model and its images: accuracy by class, confusion, and images that fell."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent_ext.attacks.accuracy import predict
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.restarts import adversaries
from atent_ext.core import seeds
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import device_of
from atent_ext.core.norms import norm
from atent_ext.evaluation import drawn
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.scoring import Subject

STEPS = 40
_MOST, _BEST = 12, 3
"""Images that are drawn, and classes whose probability is written beside each."""


@dataclass(frozen=True)
class Fallen:
    """An image that was right and fell. pictures: clean, difference (scaled), adversary, as data: URLs.

    before, after: the likeliest classes with their probabilities. attack: the first attack of the report that broke it.
    found: whether the adversary that is drawn is misclassified, too.
    """

    index: int
    label: str
    attack: str
    pictures: tuple[str, str, str]
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]
    found: bool


@dataclass(frozen=True)
class Images:
    """What the images show. classes: (name, images, right when clean, right in the worst case).

    confusion: for each true class how many adversaries the model takes for each class.
    """

    classes: tuple[tuple[str, int, int, int], ...]
    confusion: tuple[tuple[int, ...], ...]
    fallen: tuple[Fallen, ...]
    n: int


def look(subject: Subject, report: Report) -> Images:
    """Attack the report's images by PGD-40 with its seed; flags and accuracies stay those of the report.

    Raises BadInput for a subject with fewer images than the report.
    """
    if len(subject.test) < report.n:
        message = f"the subject has {len(subject.test)} images and the report {report.n}; name the one that was scored"
        raise BadInput(message, code="other-content", field="subject")
    split = subject.test.take(report.n) if report.drawn is None else drawn.first(subject.test, report.n, report.seed)
    model = subject.model
    device = device_of(model)
    x, y = split.images, split.labels
    clean, worst = report.flags("clean"), report.worst.robust()
    kernel = pgd(norm(report.threat.norm), report.threat.eps, STEPS)
    found = [
        adversaries(kernel, model, part.to(device), of.to(device), cross_entropy, seeds.generator(report.seed, device))
        for part, of in zip(torch.split(x, report.batch_size), torch.split(y, report.batch_size), strict=True)
    ]
    adversary = torch.cat([one.cpu() for one in found])
    logits = [_probabilities(model, images) for images in (x, adversary)]
    count = logits[0].shape[1]
    names = [str(number) for number in range(max(count, int(y.max()) + 1))]
    predicted = logits[1].argmax(1)
    fell = (clean & ~worst).nonzero().flatten().tolist()[:_MOST]
    return Images(
        classes=tuple(_by_class(names[c], y == c, clean, worst) for c in range(count)),
        confusion=tuple(tuple(int(((y == a) & (predicted == b)).sum()) for b in range(count)) for a in range(count)),
        fallen=tuple(
            _fallen(i, x[i], adversary[i], int(y[i]), (logits[0][i], logits[1][i]), names, report) for i in fell
        ),
        n=report.n,
    )


def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return predict(model, images).softmax(1).cpu()


def _by_class(name: str, own: Tensor, clean: Tensor, worst: Tensor) -> tuple[str, int, int, int]:
    return name, int(own.sum()), int((own & clean).sum()), int((own & worst).sum())


def _fallen(
    index: int,
    clean: Tensor,
    adversary: Tensor,
    label: int,
    shares: tuple[Tensor, Tensor],
    names: Sequence[str],
    report: Report,
) -> Fallen:
    difference = adversary - clean
    grey = 0.5 + 0.5 * difference / (float(difference.abs().max()) or 1.0)
    broken = next(
        (one.attack for one in report.attacks if len(one.flags) > index and one.flags[index] == "0"),
        report.worst.attack,
    )
    return Fallen(
        index=index,
        label=names[label],
        attack=broken,
        pictures=(_picture(clean), _picture(grey), _picture(adversary)),
        before=_best(shares[0], names),
        after=_best(shares[1], names),
        found=int(shares[1].argmax()) != label,
    )


def _best(shares: Tensor, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    values, classes = shares.topk(min(_BEST, len(shares)))
    return tuple((names[c], float(value)) for c, value in zip(classes.tolist(), values, strict=True))


def _picture(image: Tensor) -> str:
    """A PNG as a data: URL; an image of other than three channels is drawn by its first one."""
    from matplotlib.image import imsave

    channels = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    png = io.BytesIO()
    imsave(png, channels.clamp(0, 1).movedim(0, -1).contiguous().numpy(), format="png")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
