"""`atent ls` and `atent show`: what there is, quickly and with every name in one piece."""

import json
import subprocess
import sys

import pytest
import yaml
from commands import atent, refused

from atent_ext.cli import catalog
from atent_ext.core import registry
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.subjects import zoo
from atent_ext.submissions import cards
from atent_ext.training import recipes

HEADINGS = {  # of each kind, the first
    **{"recipes": "recipe", "models": "model", "datasets": "data set", "protocols": "protocol"},
    **{"objectives": "objective", "attacks": "attack", "zoo": "model", "cards": "card"},
}
# Runs commands one after the other and then says which of these modules were imported by them.
WATCHED = """
import json, sys
from atent_ext.cli import app
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["atent", *arguments]
    try:
        app.main()
    except SystemExit as end:
        assert not end.code, arguments
heavy = {"torch", "advertorch", "pyautoattack", "autoattack", "torchattacks", "robustbench", "foolbox", "art", "mair"}
print(sorted(heavy & set(sys.modules)))
"""


def entries(kind):
    done = atent("ls", kind, "--json")
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)}


def lines(kind, width):
    done = atent("ls", kind, width=width)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_looking_around_imports_neither_torch_nor_a_neighbour():
    looks = [["--version"], ["--help"], ["ls"], *(["ls", kind] for kind in HEADINGS)]
    looks += [["show", name] for name in ("cifar10-linf-trades", "quick")]
    command = [sys.executable, "-c", WATCHED, json.dumps(looks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("kind", HEADINGS)
def test_a_listing_has_a_line_for_each_entry_that_fits_80_columns(kind):
    names = list(entries(kind))
    listed = lines(kind, 80)
    assert listed[0].startswith(f"{HEADINGS[kind]} ")
    assert [line.split()[0] for line in listed[1:]] == names
    assert max(map(len, listed)) <= 80


@pytest.mark.parametrize("kind", HEADINGS)
def test_no_name_is_cut_where_there_is_no_room(kind):
    assert [line.split()[0] for line in lines(kind, 20)[1:]] == list(entries(kind))
    assert "…" not in "".join(lines(kind, 20))


def test_what_is_listed_is_what_the_commands_take():
    assert list(entries("recipes")) == recipes.names()
    assert list(entries("zoo")) == sorted(zoo.names())
    assert list(entries("models")) == list(registry.entries("model"))
    assert list(entries("objectives")) == list(registry.entries("objective"))
    assert list(entries("datasets")) == [
        *registry.entries("data set"),
        *("folder:PATH", "npz:FILE", "npy:PATH", "hf-dataset:PATH"),
    ]
    for name, one in entries("protocols").items():
        assert one["attacks"] == [attack.attack for attack in load_protocol(name).attacks]
    assert list(entries("attacks")) == list(registry.entries("attack"))


def test_a_recipe_is_listed_with_what_it_trains():
    recipe, one = recipes.load("cifar10-linf-trades"), entries("recipes")["cifar10-linf-trades"]
    assert (one["dataset"], one["threat"]) == (recipe.dataset, recipe.threat.model_dump())
    assert (one["objective"], one["model"]) == (recipe.objective["name"], recipe.model.name)
    assert (one["description"], one["package"]) == (recipe.description, None)
    (line,) = [line for line in lines("recipes", 200) if line.startswith("cifar10-linf-trades ")]
    assert line.split(None, 4)[1:] == ["cifar10", "Linf", "0.03137", recipe.description]


def test_a_model_of_the_zoo_is_listed_with_the_recipe_that_its_card_names():
    listed = entries("zoo")
    # The recipe of the same name is another training.
    assert listed["mnist-linf-atent"]["recipe"] == "mnist-linf-atent-best"
    assert listed["quickstart-digits-linf-sgd"]["recipe"] == "digits-linf-sgd"
    (card, *_), _ = zoo.find("mnist-linf-atent")
    clean, worst = card.report.of_kind("clean"), card.report.worst
    one = listed["mnist-linf-atent"]
    assert (one["clean"], one["worst"], one["images"]) == (clean.accuracy, worst.accuracy, clean.n)
    shown = {line.split()[0]: line.split()[1:] for line in lines("zoo", 80)}
    assert shown["mnist-linf-atent"] == ["mnist-linf-atent-best", "Linf", "0.3", "99.6%", f"{worst.accuracy:.1%}"]
    assert shown["quickstart-digits-linf-sgd"] == ["digits-linf-sgd", "Linf", "0.15", "98.1%", "10.8%"]


@pytest.mark.parametrize(
    ("report", "training", "recipe"),
    [
        ({"recipe": {"name": "a"}}, "Recipe: b.", "a"),
        ({}, "PGD-AT on MNIST. Started from x. Recipe: mnist-v1.2-at.", "mnist-v1.2-at"),
        ({}, "Recipe: b.", "b"),
        ({}, "Recipe: b. And then some.", None),
        ({}, "By the recipe: b.", None),
        ({}, "MyRecipe: b.", None),
        ({}, "Trained as mnist-linf-atent", None),
        ({}, "", None),
    ],
)
def test_the_recipe_of_a_card_is_read_and_never_guessed(report, training, recipe):
    assert catalog.recipe_of({"report": report, "submission": {"training": training}}) == recipe


def test_what_is_no_card_is_a_note(tmp_path, monkeypatch):
    for name, text in (("broken", "{"), ("list", "[1]"), ("unscored", '{"submission": {}, "report": {}}')):
        path = tmp_path / "card" / "digits" / "Linf-0.1" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path / kind)
    listed = lines("cards", 80)
    assert [line.partition(" cannot be used: ")[0] for line in listed[1:]] == [
        *("note: broken", "note: list", "note: unscored")
    ]


def test_the_overview_counts_every_kind():
    listed = {line.split()[0]: line.split()[1] for line in atent("ls", width=80).stdout.splitlines()[1:-1]}
    assert list(listed) == list(HEADINGS)
    assert listed == {kind: str(len(entries(kind))) for kind in HEADINGS}
    assert json.loads(atent("ls", "--json").stdout) == {kind: int(count) for kind, count in listed.items()}
    assert max(map(len, atent("ls", width=80).stdout.splitlines())) <= 80


# ---- show


def test_a_recipe_is_shown_with_its_base_as_it_can_be_trained(tmp_path):
    done = atent("show", "digits-linf-mart")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("name: digits-linf-mart\ndescription: ")
    (tmp_path / "copy.yaml").write_text(done.stdout, encoding="utf-8")
    assert recipes.load(str(tmp_path / "copy.yaml")) == recipes.load("digits-linf-mart")
    assert yaml.safe_load(done.stdout) == json.loads(atent("show", "digits-linf-mart", "--json").stdout)["recipe"]
    assert atent("show", tmp_path / "copy.yaml").stdout == done.stdout


def test_a_protocol_is_shown():
    fields = yaml.safe_load(atent("show", "quick").stdout)
    assert [one["attack"] for one in fields["attacks"]] == ["clean", "fgsm", "pgd"]
    assert json.loads(atent("show", "quick", "--json").stdout) == {"protocol": fields}


def test_of_two_things_of_one_name_both_are_shown_or_the_one_that_is_asked_for():
    both = atent("show", "mnist-linf-atent").stdout
    assert "# recipe mnist-linf-atent\n" in both
    assert "\n# card mnist-linf-atent\n" in both
    assert "recipe: mnist-linf-atent-best" in both
    assert list(json.loads(atent("show", "mnist-linf-atent", "--json").stdout)) == ["recipe", "card"]
    recipe = atent("show", "mnist-linf-atent", "--kind", "recipe").stdout
    assert yaml.safe_load(recipe)["name"] == "mnist-linf-atent"
    card = atent("show", "mnist-linf-atent", "--kind", "card").stdout
    assert card.startswith("mnist-linf-atent, a model of ")


def test_a_card_is_shown_with_claims_results_and_signs():
    name = "pyautoattack-resnet18"
    card = cards.read_card(registry.folder("card") / "cifar10" / "Linf-0.03137" / f"{name}.json")
    shown = atent("show", name).stdout
    for result in card.report.results:
        assert f"{result.correct}/{result.n}" in shown
        for note in result.notes:
            assert f"note: {note.text}" in shown
    for verdict in card.verdicts:
        assert f"claim of {verdict.claim.percent:g} % ({verdict.claim.what}): {verdict.verdict}" in shown
    for sign in card.signs:
        found = {True: "FOUND", False: "no", None: "not looked for"}[sign.found]
        assert f"  {sign.name}: {found}; {sign.evidence}" in shown
    assert "recipe: the card names none" in shown
    assert "weights: not here" in shown
    assert json.loads(atent("show", name, "--json").stdout)["card"] == [
        json.loads((registry.folder("card") / card.place).read_text(encoding="utf-8"))
    ]


def test_a_model_with_several_cards_is_shown_under_each_threat_model(tmp_path, monkeypatch):
    (card, *_), _ = zoo.find("mnist-l2-atent")
    folder = registry.folder
    for norm in ("L2-2", "Linf-0.3"):
        path = tmp_path / "mnist" / norm / "twice.json"
        cards.write_card(card, path)
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path if kind == "card" else folder(kind))
    assert atent("show", "twice").stdout.count("mnist-l2-atent, a model of ") == 2


def test_unknown_names_are_refused_in_one_line_with_the_nearest(tmp_path):
    refused(atent("ls", "recipe"), "unknown kind 'recipe'; did you mean 'recipes'?")
    refused(
        atent("show", "mnist-linf-atnt"), "no recipe, protocol or card 'mnist-linf-atnt'; did you mean 'mnist-linf-"
    )
    refused(atent("show", "qwertyuiop"), "'qwertyuiop'; `atent ls` says what there is")
    refused(atent("show", "quick", "--kind", "recipe"), "there is no recipe 'quick'; `atent ls` says")
    refused(atent("show", "quick", "--kind", "zoo"), "unknown kind 'zoo'; known: card, protocol, recipe")
    refused(atent("show", tmp_path / "missing.yaml"), "missing.yaml")


def test_a_recipe_of_another_package_is_listed_as_it_would_be_read(tmp_path, monkeypatch):
    texts = {
        "small": "threat: {norm: Linf, eps: 1e-3}",  # which PyYAML reads as a text
        "text": "threat: {norm: Linf, eps: a lot}",
        "none": "threat: Linf",
        "dated": "threat: {norm: 2024-01-01, eps: 1}",  # an odd value does not end the listing
    }
    common = "dataset: digits\nobjective: {name: sgd}\nmodel: {name: digits-cnn}\ndescription: d\n"
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(f"{common}{text}\n", encoding="utf-8")
    monkeypatch.setattr(registry, "files", lambda kind: {name: tmp_path / f"{name}.yaml" for name in texts})
    listed = entries("recipes")
    assert listed["small"]["threat"] == {"norm": "Linf", "eps": 0.001}
    assert {name: one.get("fault") for name, one in listed.items()} == {
        "small": None,
        "text": "recipe text lacks threat",
        "none": "recipe none lacks threat",
        "dated": None,
    }
    assert lines("recipes", 80)[1].split()[:4] == ["small", "digits", "Linf", "0.001"]
