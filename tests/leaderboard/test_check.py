import hashlib
import json
import re
from pathlib import Path

import pytest
import sample_cards
from sample_cards import card, claim

from atent_ext.core.errors import BadInput
from atent_ext.leaderboard import check, ranking, site

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path):
    """A registry of two cards that nothing is wrong with."""
    sample_cards.write(tmp_path / "cards", card("one"), card("two", robust=0.3, claims=[claim("robust", 90)]))
    return tmp_path


def raw(path, change):
    """Change the JSON of a card in place by `change`."""
    held = json.loads(path.read_text(encoding="utf-8"))
    change(held)
    path.write_text(json.dumps(held), encoding="utf-8")


def problem(root):
    """The only problem of a registry."""
    (found,) = check.check(root)
    assert "\n" not in found
    return found


def test_our_own_registry_is_fine():
    assert check.check(ROOT / "registry") == []


def test_a_sound_registry_has_no_problems(root):
    assert check.check(root) == []


def first(held, attack):
    return next(one for one in held["report"]["results"] if one["attack"] == attack)


def flip(held, attack, only=False):
    """Call one image broken that the flags call right; `only`: let counts and interval stay what they were."""
    result = first(held, attack)
    at = result["flags"].rindex("1")
    result["flags"] = result["flags"][:at] + "0" + result["flags"][at + 1 :]
    if not only:
        right = result["flags"].count("1")
        again = check.interval(right, result["n"])
        result |= {"correct": right, "accuracy": right / result["n"], "interval95_wilson": again}


def deep(levels):
    return {"below": deep(levels - 1)} if levels else {}


CHANGES = {
    "threat model": (lambda held: held["report"]["threat"].update(eps=0.01), "it was scored under"),
    "hash that is none": (
        lambda held: held["report"].update(content_sha256="ABC"),
        "report.content_sha256 is 'ABC', and a SHA-256",
    ),
    "hash below": (
        lambda held: held["report"]["versions"].update(weights_sha256=None),
        "report.versions.weights_sha256 is None",
    ),
    "other weights": (
        lambda held: held["weights"].update(sha256="0" * 64),
        "weights.sha256 is 0{64}, and the report is of",
    ),
    "date": (lambda held: held.update(date="yesterday"), "date is 'yesterday'"),
    "data set": (lambda held: held["submission"].update(dataset="cifar11"), "of its kind there are .*cifar10"),
    "model": (
        lambda held: held["submission"]["architecture"].update(name="resnet-19"),
        "of its kind there are .*resnet-18",
    ),
    "too few flags": (
        lambda held: first(held, "AutoAttack").update(flags="1" * first(held, "AutoAttack")["correct"]),
        r"AutoAttack: flags need 200 digits 0 or 1, and have 100; score",
    ),
    "count": (
        lambda held: first(held, "AutoAttack").update(correct=3),
        "AutoAttack: correct is 3, and 100 flags are 1",
    ),
    "proven": (
        lambda held: first(held, "AutoAttack").update(proven=101),
        "AutoAttack: proven is 101, and 100 flags are 1",
    ),
    "accuracy": (
        lambda held: first(held, "AutoAttack").update(accuracy=0.9),
        "AutoAttack: accuracy is 0.9, and the flags say 0.5",
    ),
    "interval": (
        lambda held: first(held, "AutoAttack").update(interval95_wilson=[0.5, 0.6]),
        "AutoAttack: interval95_wilson is 0.5000 to 0.6000, and the flags say 0.4314 to 0.5686",
    ),
    "worst case": (lambda held: flip(held, "worst case"), "worst case: 1 flags are not what the attacks together say"),
    "verdict": (
        lambda held: held["verdicts"][0].update(verdict="overstated"),
        r"verdicts are not those .* clean confirmed \(\+0.0\)",
    ),
    "no verdict": (lambda held: held.update(verdicts=[]), "verdicts are not those"),
    "claim that was changed": (
        lambda held: held["submission"]["claims"][0].update(percent=99.0),
        r"clean overstated \(\+9.0\)",
    ),
    "field": (lambda held: held.update(extra=1), "is no card: 'extra'"),
    "nothing": (lambda held: held.clear(), "is no card"),
    "checks": (lambda held: held["checks"].pop(), "its checks are .* and .* softmax are needed"),
    "counts of AutoAttack": (
        lambda held: first(held, "AutoAttack")["robust_after"].update({"apgd-t": 7}),
        "AutoAttack: robust_after ends with 7",
    ),
    "counts that rise": (
        lambda held: first(held, "AutoAttack").update(robust_after={"apgd-ce": 99, "apgd-t": 100}),
        "AutoAttack: robust_after rises",
    ),
    "held-out images": (lambda held: held["report"].update(part="held out"), "report.part is 'held out'"),
    "an attack called AutoAttack": (
        lambda held: first(held, "AutoAttack")["settings"].pop("package"),
        "AutoAttack: kind is 'autoattack', and only AutoAttack has a package",
    ),
    "other images": (lambda held: first(held, "clean").update(n=7), "clean is of 7 images, and the report of 200"),
    "sign that was denied": (
        lambda held: held["signs"][-1].update(evidence="none"),
        "the sign 'black box beats white box' is not what AutoAttack's counts say",
    ),
    "accuracy in quotes": (
        lambda held: first(held, "AutoAttack").update(accuracy="0.5"),
        r"'report\.results\.3\.accuracy': Input should be a valid number",
    ),
    "more images than there are": (
        lambda held: first(held, "AutoAttack").update(n=10**30),
        r"'report\.results\.3\.n': Input should be less than",
    ),
    "command for a terminal": (
        lambda held: first(held, "AutoAttack").update(attack="x\n::error::\x1b[31m"),
        r"'report\.results\.3\.attack': .* characters that are not printable",
    ),
    "deep": (lambda held: held["report"].update(machine=deep(300)), "lie more than 20 deep"),
    "eps in levels": (lambda held: held["submission"]["threat"].update(eps=8), "write 8/255"),
    "no weights": (lambda held: held.update(weights={}), "the name of the weights file is needed"),
    "weights elsewhere": (lambda held: held["weights"].update(file="../x.pt"), "file is '../x.pt'"),
    "weights above": (lambda held: held["weights"].update(file=".."), "file is '..'"),
    "weights that cannot be printed": (lambda held: held["weights"].update(file="a\nb"), r"file is 'a.nb'"),
    "not scored": (lambda held: held.update(report={}), "was not scored"),
}


@pytest.mark.parametrize(("change", "told"), CHANGES.values(), ids=list(CHANGES))
def test_what_is_wrong_with_a_card_is_said(root, change, told):
    path = root / "cards" / card("one").place
    raw(path, change)
    found = [one for one in check.check(root) if "belongs to" not in one]  # another data set is another place
    assert len(found) == 1, found
    assert re.search(told, found[0]), found
    assert str(path) in found[0]


def test_flags_that_the_counts_contradict_are_said_in_each_figure(root):
    raw(root / "cards" / card("one").place, lambda held: flip(held, "clean", only=True))
    found = [one.partition(": ")[2] for one in check.check(root)]
    assert [one.split(" is ")[0] for one in found[:3]] == [
        "clean: correct",
        "clean: accuracy",
        "clean: interval95_wilson",
    ]


def test_a_card_lies_where_it_belongs(root):
    path = root / "cards" / card("one").place
    (root / "cards" / "elsewhere").mkdir()
    path.rename(root / "cards" / "elsewhere" / "one.json")
    assert "it lies at elsewhere/one.json and belongs to cifar10/Linf-0.03137/one.json; move it" in problem(root)


def test_one_name_is_one_model(root):
    other = card("one", dataset="mnist", eps=0.3)
    assert check.check(root) == []
    sample_cards.write(root / "cards", other)  # the same weights under another threat model
    assert check.check(root) == []
    sample_cards.write(root / "cards", card("One", dataset="mnist", eps=0.1))
    assert "has this name, and is of other weights" in problem(root)


def test_weights_are_those_of_the_card(root):
    (root / "weights").mkdir()
    (root / "weights" / "one.safetensors").write_bytes(b"one")  # the sample's hash is that of its name
    (root / "weights" / "unrelated.safetensors").write_bytes(b"x")
    assert check.check(root) == []
    (root / "weights" / "two.safetensors").write_bytes(b"changed")
    assert f"two.safetensors has {hashlib.sha256(b'changed').hexdigest()}" in problem(root)


@pytest.mark.parametrize("name", ["notes.txt", "model.pt", "lonely.png"])
def test_what_is_no_card_does_not_belong_there(root, name):
    (root / "cards" / name).write_bytes(b"x")
    assert name in problem(root)


def test_a_gallery_beside_its_card_belongs_there(root):
    (root / "cards" / card("one").place).with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert check.check(root) == []


def test_a_hidden_card_is_looked_at_as_the_board_does(root):
    path = root / "cards" / card("one").place
    path.rename(path.with_name(".one.json"))
    assert len(ranking.read(root / "cards")[0].entries) == 2
    assert any("belongs to" in one for one in check.check(root))


def test_a_gallery_that_is_no_picture_is_said(root):
    (root / "cards" / card("one").place).with_suffix(".png").write_bytes(b"<svg/>")
    assert "is no PNG" in problem(root)


def test_what_a_card_says_stays_in_its_line(root):
    raw(root / "cards" / card("one").place, lambda held: held["weights"].update(sha256="x\n::error::\x1b[31m"))
    found = check.check(root)
    assert found
    assert all(one.isprintable() for one in found)


def test_a_link_is_refused(root, tmp_path_factory):
    secret = tmp_path_factory.mktemp("secret") / "secret.json"
    secret.write_text("secret", encoding="utf-8")
    (root / "cards" / "link.json").symlink_to(secret)
    assert "link.json is a link" in problem(root)


def test_a_card_of_megabytes_is_refused(root):
    raw(root / "cards" / card("one").place, lambda held: held["report"].update(notes="x" * 1_000_001))
    assert "at most 1000000 are taken" in problem(root)


def test_a_recipe_that_does_not_load_is_named(root):
    shipped = ROOT / "registry" / "recipes"
    (root / "recipes").mkdir()
    for name in ("_mnist-linf.yaml", "mnist-linf-pgd-at.yaml"):
        (root / "recipes" / name).write_bytes((shipped / name).read_bytes())
    assert check.check(root) == []
    text = (shipped / "mnist-linf-pgd-at.yaml").read_text(encoding="utf-8")
    (root / "recipes" / "other-name.yaml").write_text(text, encoding="utf-8")
    assert "name is 'mnist-linf-pgd-at', and the file is called 'other-name'" in problem(root)
    (root / "recipes" / "other-name.yaml").write_text(f"{text}\nepoch: 3\n", encoding="utf-8")
    assert "other-name.yaml" in problem(root)
    assert "did you mean" in problem(root) or "epoch" in problem(root)


def test_the_page_has_the_tables_of_the_cards(root):
    page = root / "README.md"
    page.write_text(f"{site.BEGIN}\n{site.END}\n", encoding="utf-8")
    assert "its tables are not those of the cards; run python eval/pages/write_registry.py" in problem(root)
    page.write_text(site.inserted(page.read_text(encoding="utf-8"), site.markdown(root / "cards")), encoding="utf-8")
    assert check.check(root) == []
    page.write_text("no tables", encoding="utf-8")
    assert "once each and in this order" in problem(root)


def test_all_problems_are_told_at_once(root):
    raw(root / "cards" / card("one").place, lambda held: held.update(date="yesterday"))
    raw(root / "cards" / card("two").place, lambda held: held.clear())
    (root / "cards" / "notes.txt").write_bytes(b"x")
    assert len(check.check(root)) == 3


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_registry_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="neither cards nor recipes"):
        check.check(tmp_path / name)


def test_a_registry_without_cards_is_fine(tmp_path):
    (tmp_path / "cards").mkdir()
    assert check.check(tmp_path) == []
