"""A run becomes the folder of a submission."""

import hashlib

import pytest
from reports import report, result
from strangers import same_weights

from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.submissions import folder as submission_folder
from atent_ext.training import loop, recipes
from atent_ext.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("submissions") / "run"
    changes = ["epochs=1", "examples=200", "objective.steps=1", "validation.count=40", "validation.steps=1"]
    loop.fit(recipes.load("digits-linf-pgd-at", changes), datasets.load("digits"), folder)
    return folder


def report_of(run, path, **changes):
    found = [("clean", 0.97), ("PGD-40", 0.85), ("AutoAttack", 0.8125), ("worst case", 0.81)]
    digest = hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    report(*(result(*one) for one in found), **{"weights_sha256": digest} | changes).save(path)
    return path


def test_a_run_becomes_a_submission_that_reads_back(run, tmp_path):
    link = "https://example.org/paper"
    given = {"name": "mine", "authors": "A. Author, B. Author", "license": "MIT", "link": link, "venue": "X 2026"}
    out = submission_folder.new(run, tmp_path / "new" / "s", **given, report=report_of(run, tmp_path / "r.json"))
    assert sorted(path.name for path in out.iterdir()) == ["card.yaml", "model.safetensors", "recipe.yaml"]
    opened = submission_folder.read(out)
    recipe = RunFolder(run).recipe()
    assert same_weights(opened.network, RunFolder(run).load_model(datasets.load("digits")))
    assert (opened.recipe, opened.notes) == (recipe, ())
    card = opened.submission
    assert {field: getattr(card, field) for field in given} == given
    assert (card.architecture, card.dataset, card.threat) == (recipe.model, "digits", recipe.threat)
    assert card.training == f"{recipe.description} Recipe: {recipe.name}."
    assert [(claim.what, claim.percent, claim.attack) for claim in card.claims] == [
        ("clean", 97.0, ""),
        ("robust", 81.0, "worst case of PGD-40, AutoAttack"),
    ]
    assert card.claims[1].source == "r.json: test, the first 200 of 360"


def test_without_a_report_nothing_is_claimed_and_the_name_is_the_recipes(run, tmp_path):
    out = submission_folder.new(run, tmp_path, authors="A", license="MIT")  # an empty folder may be there
    card = submission_folder.read(out).submission
    assert (card.name, card.claims, card.venue) == ("digits-linf-pgd-at", (), "Unpublished")


def refused(run, out, **fields):
    with pytest.raises(BadInput) as error:
        submission_folder.new(run, out, **({"authors": "A", "license": "MIT"} | fields))
    return str(error.value)


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert refused(run, tmp_path) == f"{tmp_path} is there already; name a new folder"
    assert refused(run, tmp_path / "file") == f"{tmp_path}/file is there already; name a new folder"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


def test_a_field_that_does_not_fit_leaves_nothing_behind(run, tmp_path):
    out = tmp_path / "s"
    assert "'authors': " in refused(run, out, authors="")
    assert "'link': an address that starts with https://" in refused(run, out, link="javascript:alert(1)")
    assert "'name': letters, digits" in refused(run, out, name="../x")
    assert refused(tmp_path, out) == f"{tmp_path} holds no run: there is no recipe.yaml in it"
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    assert refused(tmp_path, out).startswith(f"{tmp_path} holds no weights yet: there is no weights.safetensors in it")
    assert not out.exists()


def test_a_report_of_something_else_is_refused(run, tmp_path):
    out, path = tmp_path / "s", tmp_path / "r.json"
    other = report_of(run, path, weights_sha256="0" * 64)
    assert (
        refused(run, out, report=other) == f"{path} is a report of other weights; score the run anew with `atent eval`"
    )
    other = report_of(run, path, threat={"norm": "Linf", "eps": 0.1})
    assert f"{path} is a report under norm='Linf' eps=0.1, and the run's threat model is norm='Linf' eps=0.15" in (
        refused(run, out, report=other)
    )
    other = report_of(run, path, part="held out of training")
    assert f"{path} is a report on images held out of training, the first 200 of 360; claims are of test images" in (
        refused(run, out, report=other)
    )
    path.write_text("[]")
    assert "is no report of `atent eval`" in refused(run, out, report=path)
    assert f"{tmp_path / 'nowhere.json'} cannot be read" in refused(run, out, report=tmp_path / "nowhere.json")
    assert not out.exists()


def test_the_claims_are_of_the_kinds_of_results_and_not_of_their_names(run, tmp_path):
    digest = hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    named = report(
        result("none", 0.97, kind="clean"),
        result("clean", 0.85, kind="attack"),
        result("all", 0.81, kind="worst_case"),
        weights_sha256=digest,
    )
    named.save(tmp_path / "r.json")
    submission_folder.new(run, tmp_path / "s", authors="A", license="MIT", report=tmp_path / "r.json")
    claims = submission_folder.read(tmp_path / "s").submission.claims
    assert [(one.what, one.percent, one.attack) for one in claims] == [
        ("clean", 97.0, ""),
        ("robust", 81.0, "worst case of clean"),
    ]
