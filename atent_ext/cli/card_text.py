"""A card as text, from its plain data."""

from collections.abc import Iterator, Mapping
from typing import Any

from atent_ext.cli import catalog
from atent_ext.core import registry

Content = Mapping[str, Any]
_FOUND = {True: "FOUND", False: "no", None: "not looked for"}


def about(content: Content) -> Iterator[str]:
    """Lines on the model, its training and its weights."""
    submission, weights = content["submission"], content["weights"]
    name, architecture = submission["name"], submission["architecture"]
    arguments = "".join(f", {key} {value}" for key, value in architecture.get("arguments", {}).items())
    yield f"{name}, a model of {submission['authors']}; {submission['license']}; {submission['venue']}"
    if submission.get("link"):
        yield f"link: {submission['link']}"
    yield f"network: {architecture['name']}{arguments}; {weights['parameters']:,} parameters"
    yield f"recipe: {catalog.recipe_of(content) or 'the card names none'}"
    yield f"training: {submission.get('training') or 'not stated in the card'}"
    here = f"here: atent eval {name}" if catalog.loads(name) else "not here"
    yield f"weights: {here}; SHA-256 {weights['sha256']}"
    yield from (f"weights: {note}" for note in weights.get("notes", ()))
    yield f"measured: {content['date']}, commit {content['commit'] or 'unknown'}: {content['command']}"


def remarks(content: Content) -> Iterator[str]:
    """Lines on failed checks, signs of gradient masking that were found, and verdicts on claims."""
    for check in content["checks"]:
        if check["passed"] is False:
            yield f"check failed: {check['name']}: {check['said']}"
    for sign in content["signs"]:
        if sign["found"]:
            yield f"sign of gradient masking: {sign['name']}: {sign['evidence']}"
    yield from _claims(content)


def _claims(content: Content) -> Iterator[str]:
    for verdict in content["verdicts"]:
        claim, (low, high) = verdict["claim"], verdict["interval"]
        yield (
            f"claim of {claim['percent']:g} % ({claim['what']}): {verdict['verdict']}; measured "
            f"{verdict['measured']:.1f} % ({low:.1f}-{high:.1f}) under {verdict['attack']}, "
            f"{verdict['points']:+.1f} points"
        )
    compared = [verdict["claim"] for verdict in content["verdicts"]]
    for claim in content["submission"]["claims"]:
        if content["report"] and claim not in compared:
            yield f"claim of {claim['percent']:g} % ({claim['what']}): not decided; {_why(content['report'])}"


def _why(report: Content) -> str:
    """Why a claim has no verdict."""
    if report.get("drawn") and any(result["kind"] == "autoattack" for result in report["results"]):
        return f"{report['n']} of {report['total']} images do not decide it"
    return "only with AutoAttack can it be confirmed"


def standing(content: Content, place: str) -> str:
    """Where a card belongs: on the board, or not, since it is of other data."""
    dataset, report = content["submission"]["dataset"], content["report"]
    if dataset in registry.entries("data set") and not content["submission"].get("resize"):
        return f"the card's place is registry/cards/{place}"
    images = f"SHA-256 {report['data_sha256']}"
    return f"the card is of images that are not those of the board ({report['data']}, {images}), and stays off it"


def evidence(content: Content) -> Iterator[str]:
    """Lines on missing claims, the number of passed checks, and every sign of gradient masking, found or not."""
    if not content["submission"]["claims"]:
        yield "claims: none"
    passed = [check["passed"] for check in content["checks"]]
    yield f"checks: {passed.count(True)} passed, {passed.count(False)} failed, {passed.count(None)} did not apply"
    yield "signs of gradient masking:"
    for sign in content["signs"]:
        yield f"  {sign['name']}: {_FOUND[sign['found']]}; {sign['evidence']}"
