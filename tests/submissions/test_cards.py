"""Cards: what a stranger writes is checked whole, and what we write reads back."""

import json
from pathlib import Path

import pytest
import yaml
from reports import report, result

from atent_ext.core.errors import BadInput
from atent_ext.submissions import cards
from atent_ext.submissions.cards import Card, Submission

FIELDS = {
    "name": "a-model",
    "authors": "A. Stranger",
    "architecture": {"name": "small-cnn", "arguments": {"dropout": 0.5}},
    "dataset": "mnist",
    "threat": {"norm": "Linf", "eps": 0.3},
    "license": "MIT",
}
FULL = FIELDS | {
    "link": "https://example.org/paper?a=1#b",
    "venue": "Jahrbuch für ℓ∞",
    "extra_data": True,
    "training": "PGD-AT\n\tand more",
    "normalisation": {"mean": [0.1307], "std": [0.3081]},
    "random": True,
    "claims": [{"what": "clean", "percent": 99.5, "attack": "", "source": "README"}],
}


def written(tmp_path, **changes):
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(FIELDS | changes, allow_unicode=True), encoding="utf-8")
    return path


def refusal(path, read=cards.read_submission):
    with pytest.raises(BadInput) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{path} is no card: ")


def card(**changes):
    """A card as it was measured, as plain data."""
    verdict = {
        "claim": FULL["claims"][0],
        "measured": 99.0,
        "interval": [98.0, 99.5],
        "attack": "clean",
        "points": 0.5,
        "verdict": "confirmed",
    }
    return {
        "submission": FULL,
        "weights": {"file": "model.pt", "sha256": "0" * 64},
        "checks": [{"name": "finite", "passed": None, "said": ""}],
        "signs": [{"name": "zero gradients", "found": False, "evidence": "0 of 500"}],
        "verdicts": [verdict],
        "report": report(result("clean", 0.5, 2)).model_dump(mode="json"),
        "command": "atent verify X",
        "commit": "",
        "date": "2026-11-26",
        "seconds": 1.5,
    } | changes


@pytest.mark.parametrize("fields", [FIELDS, FULL])
def test_a_submission_that_is_written_reads_back(tmp_path, fields):
    submission, path = Submission.model_validate(fields), tmp_path / "card.yaml"
    cards.write_submission(submission, path)
    assert cards.read_submission(path) == submission


@pytest.mark.parametrize("changes", [{}, {"report": None}])
def test_a_card_that_is_written_reads_back(tmp_path, changes):
    whole = Card.model_validate(card(**changes))
    cards.write_card(whole, tmp_path / "cards" / whole.place)
    assert cards.read_card(tmp_path / "cards" / "mnist" / "Linf-0.3" / "a-model.json") == whole


@pytest.mark.parametrize(("text", "eps"), [("8/255", 8 / 255), (" 1 / 4 ", 0.25), ("0.5/2", 0.25)])
def test_eps_may_be_a_fraction(tmp_path, text, eps):
    path = written(tmp_path, threat={"norm": "L2", "eps": text})
    assert cards.read_submission(path).threat.eps == eps


@pytest.mark.parametrize(
    "eps", ["8/0", "1/2/3", "__import__('os')", "9" * 400 + "/1", -0.1, float("nan"), float("inf")]
)
def test_other_radii_are_refused(tmp_path, eps):
    assert refusal(written(tmp_path, threat={"norm": "Linf", "eps": eps})).startswith("'threat.eps': ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"licence": "MIT"}, "'licence': Extra inputs are not permitted"),
        ({"name": "../x"}, "'name': letters, digits, dots, dashes and underscores only, the first a letter or digit"),
        ({"name": "x\n"}, "'name': letters, digits, dots, dashes and underscores only, the first a letter or digit"),
        ({"link": "javascript:alert(1)"}, "'link': an address that starts with https:// is needed, without spaces"),
        ({"link": "https://x.org/\n"}, "'link': an address that starts with https:// is needed, without spaces"),
        ({"link": 'https://x.org/"onclick="y'}, "'link': an address that starts with https:// is needed, without"),
        ({"dataset": "../mnist"}, "'dataset': '../mnist' is no name of a data set; a card names no files and folders"),
        ({"dataset": "mnist\n"}, "'dataset': 'mnist\\n' is no name of a data set; a card names no files and folders"),
        ({"authors": "x" * 301}, "'authors': String should have at most 300 characters"),
        ({"authors": "a\x1b[2Jb"}, "'authors': the control character '\\x1b' is in it; remove it"),
        ({"training": "a\u202eb"}, "'training': the control character '\\u202e' is in it; remove it"),
        ({"license": "\x00"}, "'license': the control character '\\x00' is in it; remove it"),
        ({"normalisation": {"mean": [0.5], "std": [0.5, 0.5]}}, "'normalisation': 1 means, 2 deviations; one of each"),
        ({"normalisation": {"mean": [0.5], "std": [0.0]}}, "'normalisation.std.0': Input should be greater than 0"),
        ({"claims": [{"what": "clean", "percent": 101}]}, "'claims.0.percent': Input should be less than or equal"),
        ({"architecture": {"name": "a\x07"}}, "'architecture': the control character '\\x07' is in it; remove it"),
    ],
)
def test_a_field_that_does_not_fit_is_named(tmp_path, changes, said):
    assert refusal(written(tmp_path, **changes)).startswith(said)


@pytest.mark.parametrize("value", [3, -1.5, True, None, "wide", [1, 2, 3], ["a", 0.5]])
def test_arguments_of_a_network_are_plain_values(tmp_path, value):
    path = written(tmp_path, architecture={"name": "x", "arguments": {"width": value}})
    assert cards.read_submission(path).architecture.arguments == {"width": value}


@pytest.mark.parametrize("value", [1_000_001, -(10**50), float("nan"), "x" * 101, "a\nb", [[1]], {"a": 1}, [10**7]])
def test_other_arguments_are_refused(tmp_path, value):
    path = written(tmp_path, architecture={"name": "x", "arguments": {"width": value}})
    assert refusal(path) == (
        "'architecture': argument 'width' is no plain value; numbers up to 1,000,000 and words are"
    )


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "null"])
def test_a_file_without_fields_is_refused(tmp_path, text):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    assert refusal(path) == f"{path} holds no fields; a card is a mapping of names to values"


@pytest.mark.parametrize("read", [cards.read_submission, cards.read_card])
def test_a_card_that_is_not_there_or_a_link_is_refused(tmp_path, read):
    path = tmp_path / "card"
    assert refusal(path, read) == f"{path} cannot be read: No such file or directory; put the file there"
    path.symlink_to(Path(__file__))
    assert refusal(path, read) == f"{path} is a symbolic link; put the file itself there"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, b"\xff", '{"a": ' + "9" * 5000 + "}"])
def test_a_card_that_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "card.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(path, cards.read_card).startswith(f"{path} is not a card in JSON: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"submission": FIELDS | {"dataset": "/etc"}}, "'submission.dataset': '/etc' is no name of a data set"),
        ({"submission": FIELDS | {"name": "../../x"}}, "'submission.name': letters, digits"),
        ({"verdicts": [{}]}, "'verdicts.0.claim': Field required"),
        ({"seconds": "long"}, "'seconds': Input should be a valid number"),
    ],
)
def test_a_card_of_the_registry_is_checked_as_well(tmp_path, changes, said):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card(**changes)))
    assert refusal(path, cards.read_card).startswith(said)


def test_a_card_has_one_place_below_the_registry():
    found = Card.model_validate(card(submission=FIELDS | {"threat": {"norm": "Linf", "eps": "8/255"}}))
    assert found.place == Path("mnist", "Linf-0.03137", "a-model.json")
