"""A card in words, out of its plain data."""

from collections.abc import Iterator, Mapping
from typing import Any

from atent_ext.cli import catalog

Content = Mapping[str, Any]
_FOUND = {True: "FOUND", False: "no", None: "not looked for"}


def about(content: Content) -> Iterator[str]:
    """What a card says of the model and its training, a line each."""
    submission, weights = content["submission"], content["weights"]
    name, architecture = submission["name"], submission["architecture"]
    arguments = "".join(f", {key} {value}" for key, value in architecture.get("arguments", {}).items())
    yield f"{name}, a model of {submission['authors']}; {submission['license']}; {submission['venue']}"
    if submission.get("link"):
        yield f"link: {submission['link']}"
    yield f"network: {architecture['name']}{arguments}; {weights['parameters']:,} parameters"
    yield f"recipe: {catalog.recipe_of(content) or 'the card names none'}"
    yield f"training: {submission.get('training') or 'the card says nothing of it'}"
    here = f"here: atent eval {name}" if catalog.loads(name) else "not here"
    yield f"weights: {here}; SHA-256 {weights['sha256']}"
    yield f"measured: {content['date']}, commit {content['commit'] or 'unknown'}: {content['command']}"


def remarks(content: Content) -> Iterator[str]:
    """What a reader has to know besides the table: failed checks, signs of masking, claims and their verdicts."""
    for check in content["checks"]:
        if check["passed"] is False:
            yield f"check failed: {check['name']}: {check['said']}"
    for sign in content["signs"]:
        if sign["found"]:
            yield f"sign of gradient masking: {sign['name']}: {sign['evidence']}"
    yield from _claims(content)


def _claims(content: Content) -> Iterator[str]:
    for one in content["verdicts"]:
        claim, (low, high) = one["claim"], one["interval"]
        yield (
            f"claim of {claim['percent']:g} % ({claim['what']}): {one['verdict']}; measured {one['measured']:.1f} % "
            f"({low:.1f}-{high:.1f}) under {one['attack']}, {one['points']:+.1f} points"
        )
    compared = [one["claim"] for one in content["verdicts"]]
    for claim in content["submission"]["claims"]:
        if content["report"] and claim not in compared:
            yield (
                f"claim of {claim['percent']:g} % ({claim['what']}): not judged; "
                "only with AutoAttack can it be confirmed"
            )


def evidence(content: Content) -> Iterator[str]:
    """Whether there are claims, how many checks passed, and each sign of gradient masking, found or not."""
    if not content["submission"]["claims"]:
        yield "claims: none"
    passed = [check["passed"] for check in content["checks"]]
    yield f"checks: {passed.count(True)} passed, {passed.count(False)} failed, {passed.count(None)} did not apply"
    yield "signs of gradient masking:"
    for sign in content["signs"]:
        yield f"  {sign['name']}: {_FOUND[sign['found']]}; {sign['evidence']}"
