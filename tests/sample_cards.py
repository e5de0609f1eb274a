"""Cards of models that do not exist, whole in every respect: flags, counts, intervals and verdicts agree."""

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atent_ext.attacks.spec import Kind
from atent_ext.core.statistics import interval
from atent_ext.evaluation.report import Report
from atent_ext.submissions import claims, masking, sanity
from atent_ext.submissions.cards import Card, Submission, write_card

STANDARD = {"PGD-40 x 3, every iterate": 0.03, "ATENT-40 x 3, every iterate": 0.02, "AutoAttack": 0.0}
"""How much more accuracy each attack leaves than the strongest of them."""
KINDS: Mapping[str, Kind] = {"clean": "clean", "AutoAttack": "autoattack", "worst case": "worst_case"}


def card(name: str = "sample", *, clean: float = 0.9, robust: float = 0.5, n: int = 200, **changes: Any) -> Card:
    """A card of about that accuracy; changes are of its submission, or of the card itself where that has the field."""
    submission = _submission(name, {key: value for key, value in changes.items() if key not in Card.model_fields})
    report = _report(submission, clean, robust, n)
    whole: dict[str, Any] = {
        "submission": submission,
        "weights": {
            "file": "model.safetensors",
            "sha256": report.weights_sha256,
            "bytes": 44_700_000,
            "parameters": 11_173_962,
        },
        "checks": CHECKS,
        "signs": [*SIGNS, masking.black_box(report)],
        "verdicts": claims.verdicts(submission.claims, report),
        "report": report,
        "curve": _curve(submission.threat.eps, clean, robust),
        "command": f"atent verify {name} --n {n}",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "date": "2026-11-20T12:30:00+00:00",
        "seconds": 4321.0,
    }
    return Card.model_validate(whole | {key: value for key, value in changes.items() if key in Card.model_fields})


def write(folder: Path, *cards: Card) -> Path:
    """Write each card where it belongs below `folder`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in cards:
        write_card(one, folder / one.place)
    return folder


def claim(what: str, percent: float, attack: str = "") -> dict[str, Any]:
    return {"what": what, "percent": percent, "attack": attack, "source": "README of the model"}


CHECKS = [{"name": name, "passed": True, "said": "nothing of 64 images speaks against it"} for name in sanity.NAMES]
SIGNS = [
    {"name": "one step beats many", "found": False, "evidence": "FGSM alone breaks 0 images, PGD-40 alone 23; p = 1"},
    {"name": "zero gradients", "found": False, "evidence": "zero for 0 of 200 images; p = 1"},
]
MASKED = [
    {
        "name": "one step beats many",
        "found": True,
        "evidence": "FGSM alone breaks 31 images, PGD-40 alone 4; p = 2e-06",
    },
    {"name": "zero gradients", "found": True, "evidence": "zero for 122 of 200 images; p = 1e-130"},
]


def _submission(name: str, changes: Mapping[str, Any]) -> Submission:
    norm, eps = changes.get("norm", "Linf"), changes.get("eps", 8 / 255)
    rest = {key: value for key, value in changes.items() if key not in ("norm", "eps", "model")}
    given = {
        "name": name,
        "authors": "A. Author, B. Author",
        "link": "https://example.org/paper",
        "venue": "NeurIPS 2025",
        "architecture": {"name": changes.get("model", "resnet-18")},
        "dataset": "cifar10",
        "threat": {"norm": norm, "eps": eps},
        "training": "PGD-AT, 110 epochs, 10 steps",
        "license": "MIT",
        "claims": [claim("clean", 90.0)],
    }
    return Submission.model_validate(given | rest)


def _report(submission: Submission, clean: float, robust: float, n: int) -> Report:
    draw = random.Random(submission.name)
    # Images in the order of their difficulty: attacks mostly break the same ones.
    order = draw.sample(range(n), n)
    right = order[: round(clean * n)]
    flags = {"clean": set(right)}
    for attack, more in STANDARD.items():
        kept = min(len(right), round((robust + more) * n))
        flags[attack] = set(sorted(right, key=lambda image: order.index(image) + draw.gauss(0, n / 60))[:kept])
    flags["worst case"] = set.intersection(*flags.values())
    results = [_result(attack, images, n) for attack, images in flags.items()]
    results[-1]["settings"] = {"over": ", ".join(attack for attack in flags if attack != "worst case")}
    after = {"apgd-ce": results[3]["correct"] + 4, "apgd-t": results[3]["correct"]}
    results[3] |= {"settings": {"version": "standard", "package": "pyautoattack 0.2.0"}, "robust_after": after}
    whole = {
        "name": submission.name,
        "model": submission.architecture.name,
        "weights_sha256": hashlib.sha256(submission.name.encode()).hexdigest(),
        "data": submission.dataset,
        "data_note": "",
        "data_sha256": hashlib.sha256(b"images").hexdigest(),
        "part": "test",
        "n": n,
        "total": 10_000,
        "protocol": "verify",
        "threat": submission.threat,
        "seed": 0,
        "batch_size": 250,
        "versions": {"atent-ext": "0.2.0", "torch": "2.15.0"},
        "machine": {"device": "cpu", "threads": 1},
        "results": results,
    }
    return Report.model_validate(whole)


def _result(attack: str, images: set[int], n: int) -> dict[str, Any]:
    return {
        "kind": KINDS.get(attack, "attack"),
        "attack": attack,
        "correct": len(images),
        "n": n,
        "accuracy": len(images) / n,
        "interval95_wilson": interval(len(images), n),
        "seconds": 12.3,
        "notes": [],
        "flags": "".join("01"[image in images] for image in range(n)),
    }


def _curve(eps: float, clean: float, robust: float) -> dict[str, Any]:
    far = max(0.5, eps)
    radii = [0.0, eps / 2, eps, 1.5 * eps, 2 * eps, far] if 2 * eps < far else [0.0, eps / 2, eps, far]
    pgd = [clean, (clean + robust) / 2 + 0.03, robust + 0.02, robust * 0.6, robust * 0.3, 0.0]
    noise = [clean, clean, clean - 0.01, clean - 0.01, clean - 0.02, clean / 4]
    shares = {"PGD-40": pgd, "random noise": noise}
    accuracy = {
        name: [max(0.0, round(one, 3)) for one in values[: len(radii) - 1]] + [values[-1]]
        for name, values in shares.items()
    }
    return {"n": 50, "eps": radii, "accuracy": accuracy}


def dozen() -> list[Card]:
    """Two tables for pictures: plausible figures, no real models."""
    cifar = {"n": 1000, "dataset": "cifar10"}
    mnist = {"n": 500, "dataset": "mnist", "eps": 0.3, "model": "small-cnn", "training": "30 epochs of 40 steps"}
    return [
        card(
            "wrn-34-10-more-data",
            clean=0.912,
            robust=0.601,
            model="wrn-34-10",
            extra_data=True,
            claims=[claim("robust", 59.6)],
            authors="M. Ito, R. Okafor, L. Brandt",
            **cifar,
        ),
        card(
            "resnet-18-trades",
            clean=0.826,
            robust=0.507,
            claims=[claim("clean", 82.4), claim("robust", 51.5)],
            authors="H. Zhang et al.",
            **cifar,
        ),
        card(
            "resnet-18-atent",
            clean=0.851,
            robust=0.493,
            claims=[claim("robust", 57.2)],
            authors="G. Jagatap et al.",
            venue="Frontiers in AI 2022",
            **cifar,
        ),
        card(
            "resnet-18-pgd-at",
            clean=0.847,
            robust=0.472,
            claims=[],
            authors="A. Madry et al.",
            venue="ICLR 2018",
            date="2026-11-02",
            **cifar,
        ),
        card(
            "defence-by-rounding",
            clean=0.896,
            robust=0.062,
            signs=MASKED,
            claims=[claim("robust", 71.0)],
            authors="A student's project with a rather long list of authors who all want to be named",
            venue="Unpublished",
            link="",
            license="unknown",
            **cifar,
        ),
        card(
            "vgg-11-noise-layers",
            clean=0.787,
            robust=0.214,
            model="vgg-11",
            random=True,
            claims=[claim("robust", 38.0), claim("clean", 78.9)],
            authors="P. Novák",
            **cifar,
        ),
        card(
            "resnet-18-plain",
            clean=0.949,
            robust=0.0,
            claims=[claim("clean", 94.9)],
            authors="baseline",
            date="2026-10-18",
            **cifar,
        ),
        card("mnist-linf-trades", clean=0.994, robust=0.936, claims=[claim("robust", 93.0)], **mnist),
        card(
            "mnist-linf-pgd-at",
            clean=0.988,
            robust=0.918,
            claims=[claim("robust", 92.1)],
            authors="A. Madry et al.",
            **mnist,
        ),
        card(
            "mnist-linf-atent",
            clean=0.984,
            robust=0.918,
            claims=[claim("robust", 89.0)],
            authors="G. Jagatap et al.",
            **mnist,
        ),
        card(
            "lenet5-advtrained",
            clean=0.995,
            robust=0.902,
            claims=[claim("clean", 99.5)],
            authors="advertorch",
            date="2026-11-26",
            **(mnist | {"model": "lenet5-advertorch"}),
        ),
        card(
            "digits-of-a-stranger",
            clean=0.97,
            robust=0.61,
            claims=[claim("robust", 90.0)],
            checks=[
                *CHECKS,
                {"name": "no state between calls", "passed": False, "said": "the second call differs by 0.31"},
            ],
            authors="unknown",
            **mnist,
        ),
    ]
