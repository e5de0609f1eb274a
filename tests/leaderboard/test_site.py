"""The leaderboard: who is ranked how, what is written where, and what a hostile card cannot do. Pages are opened in
leaderboard/test_site_browser.py."""

import json
import re
from pathlib import Path

import pytest
import sample_cards
from sample_cards import card, claim

from atent_ext.core.errors import BadInput
from atent_ext.leaderboard import ranking, site

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n" + b"picture"


PLACE = card().place


def entries(folder, *cards):
    """The entries of cards, or of what somebody made of the JSON of the sample."""
    for made in (made for made in cards if isinstance(made, dict)):
        (folder / PLACE).parent.mkdir(parents=True)
        (folder / PLACE).write_text(json.dumps(made), encoding="utf-8")
    sample_cards.write(folder, *(made for made in cards if not isinstance(made, dict)))
    return [entry for table in ranking.read(folder) for entry in table.entries]


def renamed(of, name):
    """The same figures under another name."""
    return of.model_copy(update={"submission": of.submission.model_copy(update={"name": name})})


def altered(of, change):
    """The JSON of a card with its report changed in place by `change`."""
    held = of.model_dump(mode="json")
    change(held["report"])
    return held


# ---- standings


def test_the_worst_case_ranks_and_equals_share_a_rank(tmp_path):
    middle = card("middle", robust=0.5)
    found = entries(
        tmp_path, card("low", clean=0.99, robust=0.3), middle, renamed(middle, "again"), card("top", robust=0.7)
    )
    assert [(entry.rank, entry.card.submission.name) for entry in found] == [
        (1, "top"),
        (2, "again"),
        (2, "middle"),
        (4, "low"),
    ]


def test_clean_accuracy_decides_between_equals(tmp_path):
    found = entries(tmp_path, card("a", clean=0.4, robust=0.0), card("b", clean=0.6, robust=0.0))
    assert [entry.card.submission.name for entry in found if not entry.worst.correct] == ["b", "a"]


def test_there_is_a_table_for_each_data_set_and_threat_model(tmp_path):
    folder = sample_cards.write(
        tmp_path,
        card("a"),
        card("b", eps=4 / 255),
        card("c", norm="L2", eps=0.5),
        card("d", dataset="mnist", eps=0.3),
        card("e", eps=0.031372),  # another one than 8/255 only beyond the digits of the card's folder
    )
    found = [(table.dataset, table.threat_text, len(table.entries)) for table in ranking.read(folder)]
    assert found == [
        ("cifar10", "ℓ2 ≤ 0.5", 1),
        ("cifar10", "ℓ∞ ≤ 4/255", 1),
        ("cifar10", "ℓ∞ ≤ 8/255", 2),
        ("mnist", "ℓ∞ ≤ 0.3", 1),
    ]


def test_the_best_known_attack_is_the_one_that_leaves_least(tmp_path):
    def weaken(report):
        report["results"][2]["accuracy"] = 0.01

    assert entries(tmp_path / "a", card())[0].strongest.attack == "AutoAttack"
    (found,) = entries(tmp_path / "b", altered(card(), weaken))
    assert (found.strongest.attack, found.strongest.accuracy) == ("ATENT-40 x 3, every iterate", 0.01)


def changed_autoattack(report):
    note = {"kind": "changed", "text": "3 classes: no targeted attacks"}
    report["results"][3] |= {"attack": "AutoAttack, changed", "notes": [note]}


def of_version_1(report):
    """As version 1 wrote it: settings beside figures, notes as texts, no kinds."""
    del report["version"]
    report["split"] = f"{report.pop('part')}, the first {report.pop('n')} of {report.pop('total')}"
    for result in report["results"]:
        del result["kind"]
        result |= result.pop("settings")
        result["notes"] = [note["text"] for note in result["notes"]]


def changed_autoattack_of_version_1(report):
    changed_autoattack(report)
    of_version_1(report)


def without_autoattack(report):
    del report["results"][3]


def partly_proven(report):
    for result in report["results"][1:]:
        result["proven"] = 50


def other_images(report):
    report |= {"data": "cifar10 (test.npz)", "data_note": "512 images."}


NOT_RANDOM = [check | {"passed": check["name"] != "determinism"} for check in sample_cards.CHECKS]
BADGES = {
    "sound": (card(claims=[]), [], False),
    "masked": (card(signs=sample_cards.MASKED, claims=[]), ["masked gradients: 2 signs"], True),
    "failed": (card(checks=[{"name": "x", "passed": False, "said": "y"}], claims=[]), ["1 check failed"], True),
    "confirmed": (card(claims=[claim("clean", 90)]), ["claim confirmed"], False),
    "overstated": (card(clean=0.8, claims=[claim("clean", 92.5)]), ["claim overstated by 12.5"], True),
    "understated": (card(clean=0.8, claims=[claim("clean", 60)]), ["claim understated by 20.0"], False),
    "both": (
        card(clean=0.8, claims=[claim("clean", 80), claim("clean", 81), claim("robust", 99), claim("clean", 92)]),
        ["2 claims overstated by", "2 claims confirmed"],
        True,
    ),
    "random": (card(random=True, claims=[]), ["random"], False),
    "declared random, and not": (card(random=True, claims=[], checks=NOT_RANDOM), ["1 check failed"], True),
    "random, not declared": (card(claims=[], checks=NOT_RANDOM), ["1 check failed", "random"], True),
    "few images": (card(n=50, claims=[]), ["only 50 images"], True),
    "changed": (altered(card(claims=[]), changed_autoattack), ["AutoAttack changed"], False),
    "changed, of version 1": (altered(card(claims=[]), changed_autoattack_of_version_1), ["AutoAttack changed"], False),
    "of version 1": (altered(card(claims=[]), of_version_1), [], False),
    "partly proven": (altered(card(claims=[]), partly_proven), ["25.0 % proven"], False),
    "no AutoAttack": (altered(card(claims=[]), without_autoattack), ["no AutoAttack"], True),
    "other images": (altered(card(claims=[]), other_images), ["other test images"], False),
}


@pytest.mark.parametrize(("made", "badges", "warned"), BADGES.values(), ids=list(BADGES))
def test_badges_say_what_is_to_be_known(tmp_path, made, badges, warned):
    (found,) = entries(tmp_path, made)
    assert len(found.badges) == len(badges)
    assert all(badge.text.startswith(start) for badge, start in zip(found.badges, badges, strict=True))
    assert found.warned == warned


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.03137, "8/255"), (0.3, "0.3"), (0.12345, "0.1235"), (0.0, "0"), (1.0, "1")]
)
def test_a_radius_is_written_as_the_field_does(eps, text):
    assert ranking.eps_text(eps) == text


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("https://example.org/a?b=c", True),
        ("http://example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("https:", False),
        ("//example.org", False),
        ("https://example.org/a b", False),
        ("https://[", False),
    ],
)
def test_only_addresses_of_the_web_are_links(link, kept):
    assert ranking.web_address(link) == (link if kept else "")


def no_clean(report):
    del report["results"][0]


def two_worst(report):
    report["results"].append(report["results"][-1])


def no_attack(report):
    del report["results"][1:-1]


def no_results(report):
    del report["results"]


def too_accurate(report):
    report["results"][1]["accuracy"] = 1.5


def not_a_number(report):
    report["results"][1]["accuracy"] = float("nan")


def first_result(**fields):
    return lambda report: report["results"][0].update(fields)


def evidence_without_flags(of):
    """Adversarial images were added to the card, and the flags of AutoAttack (3) or of these images (4) are missing."""

    def change(report):
        report["results"].insert(4, report["results"][3] | {"kind": "evidence", "attack": "adversaries by B"})
        report["results"][of]["flags"] = ""

    return change


def fields(**fields):
    return lambda report: report.update(fields)


def of_version_1_and(change):
    def both(report):
        of_version_1(report)
        change(report)

    return both


UNREADABLE = {
    "no clean accuracy": (altered(card(), no_clean), "0 results 'clean'"),
    "two worst cases": (altered(card(), two_worst), "2 results 'worst case'"),
    "no attack": (altered(card(), no_attack), "no attack beside"),
    "no results": (altered(card(), no_results), "'report.results': Field required"),
    "results that are none": (altered(card(), fields(results={"attack": "clean"})), "'report.results': .* valid tuple"),
    "results that are texts": (altered(card(), fields(results=["clean"])), r"'report\.results\.0': .* dictionary"),
    "a result without figures": (
        altered(card(), fields(results=[{"attack": "x"}])),
        r"results\.0\.correct': Field req",
    ),
    "no report": (card().model_dump(mode="json") | {"report": []}, "'report': "),
    "a report that is a text": (card().model_dump(mode="json") | {"report": "x"}, "'report': "),
    "another version": (altered(card(), fields(version=3)), r"'report\.version': Input should be 2"),
    "images that are none": (altered(card(), of_version_1_and(fields(split="all"))), "split is 'all'"),
    "an unknown kind": (altered(card(), first_result(kind="best")), r"0\.kind': Input should be 'clean'"),
    "an unknown field": (altered(card(), first_result(rank=1)), r"0\.rank': Extra inputs"),
    "a count in quotes": (altered(card(), first_result(correct="180")), r"0\.correct': .* valid integer"),
    "a count that is true": (altered(card(), first_result(correct=True)), r"0\.correct': .* valid integer"),
    "a count below 0": (altered(card(), first_result(robust_after={"x": -1})), r"0\.robust_after\.x': "),
    "notes that are a text": (altered(card(), first_result(notes="x")), r"0\.notes': "),
    "old notes that are a text": (altered(card(), of_version_1_and(first_result(notes="x"))), r"0\.notes': "),
    "old notes that are numbers": (altered(card(), of_version_1_and(first_result(notes=[1]))), r"0\.notes\.0\.text'"),
    "an attack of several lines": (altered(card(), first_result(attack="a\nb\x1b[1m")), r"0\.attack': .*'a\\nb\\x1b"),
    "a field of several lines": (altered(card(), fields(versions={"a\nb": 1})), r"versions\.a\\nb"),
    "accuracy above 1": (altered(card(), too_accurate), r"1\.accuracy"),
    "evidence over no flags": (altered(card(), evidence_without_flags(3)), "AutoAttack has 0 flags, and 200 digits"),
    "evidence without flags": (altered(card(), evidence_without_flags(4)), "adversaries by B has 0 flags, and 200"),
    "NaN": (altered(card(), not_a_number), r"1\.accuracy"),
    "not scored": (card(report=None), "was not scored"),
    "not scored, of version 1": (card().model_dump(mode="json") | {"report": {}}, "was not scored"),
    "short curve": (card(curve={"n": 5, "eps": [0, 1], "accuracy": {"PGD": [0.5]}}), "needs 2 accuracies"),
    "empty curve": (card(curve={"n": 5, "eps": [], "accuracy": {"PGD": []}}), "eps"),
}


@pytest.mark.parametrize(("made", "told"), UNREADABLE.values(), ids=list(UNREADABLE))
def test_a_card_without_its_figures_is_named(tmp_path, made, told):
    with pytest.raises(BadInput, match=told) as caught:
        entries(tmp_path, made)
    assert re.match(f"{re.escape(str(tmp_path / PLACE))}(:| is no card:) ", str(caught.value))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["worst_case", "worst case", "clean", "autoattack", "AutoAttack"])
def test_no_attack_takes_the_place_of_another_by_its_name(tmp_path, name):
    def renamed(report):
        weak = {"kind": "attack", "attack": name, "accuracy": 0.99, "correct": 198}
        report["results"].insert(0, report["results"][1] | weak)

    (fair,) = entries(tmp_path / "fair", card())
    (found,) = entries(tmp_path / "hostile", altered(card(), renamed))
    assert (found.clean, found.worst, found.autoattack) == (fair.clean, fair.worst, fair.autoattack)
    assert found.strongest == fair.strongest


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"there is no folder .*nowhere"):
        site.build(tmp_path / "nowhere", tmp_path / "site")
    assert not (tmp_path / "site").exists()


# ---- files


def test_the_site_is_an_index_and_a_page_and_a_card_for_each_model(tmp_path):
    folder = sample_cards.write(tmp_path / "cards", card("one"), card("two", dataset="mnist", eps=0.3))
    files = site.build(folder, tmp_path / "site")
    assert [file.relative_to(tmp_path / "site").as_posix() for file in files] == [
        "index.html",
        "models/cifar10-linf-0.03137-one.html",
        "models/cifar10-linf-0.03137-one.json",
        "models/mnist-linf-0.3-two.html",
        "models/mnist-linf-0.3-two.json",
    ]
    assert sorted(path for path in (tmp_path / "site").rglob("*") if path.is_file()) == sorted(files)
    assert files[2].read_bytes() == (folder / card("one").place).read_bytes()


def test_a_fact_that_is_not_known_is_not_shown(tmp_path):
    assert card().report.chunk is None
    page = site.build(sample_cards.write(tmp_path / "cards", card()), tmp_path / "site")[1].read_text(encoding="utf-8")
    assert "<dt>Split</dt><dd>test, the first 200 of 10000</dd>" in page
    assert "<dt>Chunk</dt>" not in page
    assert "None</dd>" not in page


def test_the_same_cards_give_the_same_site(tmp_path):
    folder = sample_cards.write(tmp_path / "cards", card("one"), card("two"))
    first, second = (site.build(folder, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_site_without_cards_says_so(tmp_path):
    (index,) = site.build(sample_cards.write(tmp_path / "cards"), tmp_path / "site")
    assert "There are no cards yet" in index.read_text(encoding="utf-8")


def test_no_two_models_share_a_page(tmp_path):
    folder = tmp_path / "cards"
    for number, dataset in enumerate(["up", "Up", "UP..", "x" * 200, "y" + "x" * 199, "a_b", "a-b"]):
        made = card("name", dataset=dataset)
        (folder / f"{number}.json").parent.mkdir(exist_ok=True)
        (folder / f"{number}.json").write_text(made.model_dump_json(), encoding="utf-8")
    files = site.build(folder, tmp_path / "deep" / "site")
    assert len({str(file).lower() for file in files}) == len(files) == 1 + 2 * 7
    assert {file.parent for file in files[1:]} == {tmp_path / "deep" / "site" / "models"}
    assert all(file.is_file() and not file.name.startswith(".") for file in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cards", "deep"]


def test_a_picture_beside_the_card_is_its_gallery(tmp_path):
    folder = sample_cards.write(tmp_path / "cards", card("with.dot"), card("without"))
    (folder / card("with.dot").place).with_suffix(".png").write_bytes(PNG)
    files = {file.name: file for file in site.build(folder, tmp_path / "site")}
    shown = {
        name: "data:image/png;base64,iVBORw0KGgpwaWN0dXJl" in file.read_text("utf-8")
        for name, file in files.items()
        if name.endswith(".html")
    }
    assert shown == {
        "index.html": False,
        "cifar10-linf-0.03137-with.dot.html": True,
        "cifar10-linf-0.03137-without.html": False,
    }


def test_a_gallery_that_is_no_png_is_refused(tmp_path):
    folder = sample_cards.write(tmp_path / "cards", card("one"))
    (folder / card("one").place).with_suffix(".png").write_bytes(b"<svg onload='hacked = 1'>")
    with pytest.raises(BadInput, match=r"one\.png is no PNG"):
        site.build(folder, tmp_path / "site")


def test_the_card_is_shown_without_its_long_flags(tmp_path):
    files = site.build(sample_cards.write(tmp_path / "cards", card("one", n=200)), tmp_path / "site")
    text = files[1].read_text(encoding="utf-8")
    flags = card("one", n=200).report.result("clean").flags
    assert flags[:24] + "…" in text
    assert flags[:25] not in text


# ---- Markdown


def test_the_tables_in_markdown(tmp_path):
    folder = sample_cards.write(
        tmp_path / "cards",
        card("good", clean=0.9, robust=0.6, n=100, claims=[], date="2026-11-20"),
        card("bad", clean=0.95, robust=0.0, n=200, link="", extra_data=True, claims=[claim("clean", 100)]),
    )
    good, bad = (entry for table in ranking.read(folder) for entry in table.entries)
    assert site.markdown(folder).splitlines() == [
        "### cifar10, Linf eps 8/255",
        "",
        "2 models; accuracy in % of 100 to 200 images, with its 95 % Wilson interval.",
        "",
        "| rank | model | clean | AutoAttack | best known attack | worst case | images | architecture | extra data "
        "| remarks | date | link |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | [good](cards/cifar10/Linf-0.03137/good.json) | 90.0 | 60.0 (50.2–69.1) | 60.0 (AutoAttack) "
        f"| {100 * good.worst.accuracy:.1f} ({100 * good.worst.interval95_wilson[0]:.1f}–"
        f"{100 * good.worst.interval95_wilson[1]:.1f}) | 100 | resnet-18 | no |  | 2026-11-20 "
        "| [link](https://example.org/paper) |",
        "| 2 | [bad](cards/cifar10/Linf-0.03137/bad.json) | 95.0 | 0.0 (0.0–1.9) | 0.0 (AutoAttack) | 0.0 (0.0–1.9) "
        "| 200 | resnet-18 | yes | claim overstated by 5.0 | 2026-11-20 |  |",
    ]
    assert bad.worst.correct == 0


def test_no_cell_of_markdown_breaks_out(tmp_path):
    made = card("a_b", model="`x` [y](z) *w*|\n# c <b>", link="https://x.org/a|b)[c](d)", claims=[])
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "x.json").write_text(made.model_dump_json(), encoding="utf-8")
    lines = site.markdown(folder).splitlines()
    assert lines[-1].startswith(r"| 1 | [a\_b](cards/x.json) |")
    assert r"| \`x\` \[y\](z) \*w\*\| # c &lt;b&gt; |" in lines[-1]
    assert lines[-1].endswith("[link](https://x.org/a%7Cb%29%5Bc%5D%28d%29) |")
    assert len(lines) == 7


def test_tables_go_between_the_two_comments():
    page = f"# Title\n\n{site.BEGIN}\nold\n{site.END}\n\nEnd.\n"
    found = site.inserted(page, "| new |\n")
    assert found == f"# Title\n\n{site.BEGIN}\n\n| new |\n\n{site.END}\n\nEnd.\n"
    assert site.inserted(found, "| new |\n") == found


@pytest.mark.parametrize("page", ["", site.BEGIN, f"{site.END}\n{site.BEGIN}", f"{site.BEGIN} {site.BEGIN} {site.END}"])
def test_a_page_without_the_two_comments_is_refused(page):
    with pytest.raises(BadInput, match="once each and in this order"):
        site.inserted(page, "tables")


def test_the_registrys_page_has_the_tables_of_its_cards():
    text = (ROOT / "registry" / "README.md").read_text(encoding="utf-8")
    assert text == site.inserted(text, site.markdown(ROOT / "registry" / "cards")), (
        "run python eval/pages/write_registry.py"
    )
