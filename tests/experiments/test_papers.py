"""The papers' studies as data, the workshop that runs them, and what is written of them."""

import json

import pytest
from problems import attack_spec
from studies import SMALL, tiny

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.experiments import markdown, reproduce, rows, study
from atent_ext.experiments.rows import Context
from atent_ext.experiments.runner import Runner
from atent_ext.experiments.study import Certify, Column, CurveAxis, Row, Scale
from atent_ext.training import loop

# Row -> its numbers in the paper, in the order of the columns.
TABLES = {
    "v2-table1": {
        "SGD": (99.38, 19.40, 13.20),
        "Entropy-SGD": (99.24, 19.12, 14.52),
        "PGD-AT l2": (98.76, 72.94),
        "TRADES": (97.54, 76.08),
        "MMA": (99.27, 73.02, 72.72),
        "ATENT l2": (98.66, 77.21, 76.72),
    },
    "v2-table2": {
        "SGD": (99.39, 0.97, 32.37),
        "Entropy-SGD": (99.24, 1.17, 34.34),
        "PGD-AT linf": (99.36, 96.01, 94.25),
        "TRADES": (99.48, 96.07, 94.03),
        "MMA": (98.92, 95.25, 94.77),
        "MART": (98.74, 96.48, 96.10),
        "ATENT linf": (99.45, 96.44, 97.40),
    },
    "v2-table3": {
        "PGD-AT": (87.30, 47.04, 49.27),
        "PGD-AT (E)": (56.80,),
        "TRADES": (84.92, 56.61, 62.67, 58.15),
        "MART": (84.17, 57.39, 54.53, 55.89),
        "ATENT linf": (85.67, 57.23, 62.34, 57.21),
    },
    "v2-table4": {
        "PGD-AT WRN-28-4": (83.25, 66.69, 46.11),
        "MMA WRN-28-4": (88.92, 66.81, 37.22),
        "ATENT l2": (85.44, 65.12, 47.38),
        "TRADES (smooth)": (75.13, 61.03),
        "ATENT l2 (smooth)": (72.10, 64.53),
    },
    "v2-table5": {
        "CROWN-IBP ResNet-110": (72.0, 54.0),
        "Smoothing ResNet-110": (68.3, 53.9),
        "SmoothAdv ResNet-110": (82.1, 60.8),
        "TRADES smoothing ResNet-110": (78.7, 62.6),
        "TRADES smoothing": (78.2, 58.1),
        "ATENT": (72.2, 55.41),
    },
    "v2-table6": {"ATENT linf": (79.83, 73.35, 57.23, 39.37, 79.95, 73.76, 59.69, 47.53)},
    "v2-finetune": {"ATENT fine-tuned": (52.1,), "PGD-AT fine-tuned WRN-28-10": (51.7,)},
    "v1-headline": {"DESGD ℓ∞": (41.8,)},
}
SECONDS = {
    "v1-table1-mnist": [1101, 1582, 2989, 3114, 3017, 3320],
    "v1-table1-cifar10": [6840, 8321, 14218, 16985, 16860, 16745],
}
NAMES = {
    *(f"v2-table{number}" for number in range(1, 7)),
    *("v2-finetune", "v1-table1-mnist", "v1-table1-cifar10", "v1-headline", "v1-fig1", "v1-fig2", "v1-fig3", "v1-fig4"),
    *("v2-fig1", "v2-fig2", "v2-fig3", "landscape"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("papers")
    result = reproduce.reproduce(tiny(), Context("smoke", out / "runs"), out / "tiny.json")
    return out, result


# ---- the studies that are shipped


def test_every_table_and_figure_is_there():
    assert set(study.names()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_study_is_whole(name):
    found = study.load(name)
    assert found.name == name
    assert set(found.scales) == set(study.SCALES)
    for scale in study.SCALES:
        for row in found.rows_at(scale):
            if row.quoted is None and row.weights is None:
                recipe = study.recipe_of(found, row, scale)
                assert (recipe.dataset == "digits") == (scale == "smoke")
    if found.kind == "accuracy" and name != "v2-table5":  # a certificate holds against every attack
        radii = {(c.norm, c.eps, c.share) for c in found.columns if c.attack and c.attack.attack != "clean"}
        assert radii <= {
            (c.norm, c.eps, c.share) for c in found.columns if c.attack and c.attack.attack == "autoattack"
        }


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_numbers(name):
    rows = {row.name: tuple(row.paper.values()) for row in study.load(name).rows if row.paper}
    assert rows == TABLES[name]


@pytest.mark.parametrize("name", SECONDS)
def test_the_papers_seconds(name):
    assert [row.paper["seconds"] for row in study.load(name).rows] == SECONDS[name]


# ---- what a study can say


def test_radii_of_a_curve():
    axis = CurveAxis(norm="L2", attack=attack_spec("fgsm"), to=2.0, by=1 / 3, trained=1.0)
    assert axis.radii() == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-6)
    assert [column.name for column in axis.columns()][:2] == ["L2 0", "L2 0.3333"]


def test_a_radius_is_absolute_or_a_share_of_the_rows():
    own = Threat(norm="Linf", eps=0.3)
    spec = attack_spec("pgd")
    assert Column(name="a", attack=spec, share=0.5).threat(own) == Threat(norm="Linf", eps=0.15)
    assert Column(name="a", attack=spec, norm="L2", eps=2.0).threat(own) == Threat(norm="L2", eps=2.0)
    assert Column(name="a", attack=spec, step_share=0.1).spec(own).step_size == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"columns": ({"name": "a", "certify": {"radius": 0.1}},)}, "smoothing needs a sigma"),
        (
            {"columns": ({"name": "a", "certify": {"radius": 0.1, "sigma": 1}, "share": 2},)},
            "radius of its certificate",
        ),
        ({"columns": ({"name": "a"},)}, "needs either attack or certify"),
        ({"columns": ({"name": "a", "attack": {"attack": "clean"}, "eps": 1},)}, "needs eps and norm together"),
        ({"rows": ({"name": "a"},)}, "exactly one of recipe, of, weights and quoted"),
        ({"rows": ({"name": "a", "quoted": "x", "paper": {"PDG": 1}},)}, "did you mean 'PGD'"),
        ({"rows": ({"name": "a", "recipe": "x", "after": "b"},)}, "row of tiny 'b'"),
        ({"scales": {"smoke": {"recipes": "x", "leave_out": ("PDG",)}}}, "did you mean 'PGD'"),
        ({"scales": {"smoke": {"recipes": "x", "images": {"PDG": 1}}}}, "did you mean 'PGD'"),
        ({"kind": "figure"}, "needs `draws`"),
        ({"scales": {}}, "at least 1 item"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        tiny(**wrong)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'v2-table1'"):
        study.load("v2-tabel1")
    with pytest.raises(BadInput, match="unknown scale of tiny 'ful'"):
        tiny().at("ful")
    with pytest.raises(BadInput, match="is not trained here"):
        study.recipe_of(tiny(), tiny().row("theirs"), "smoke")


def test_equal_recipes_share_a_run_whatever_they_are_called():
    one = study.recipe_of(tiny(), tiny().row("SGD"), "smoke")
    other = one.model_copy(update={"description": "another", "differs": "words"})
    assert study.run_name(one) == study.run_name(other)
    assert study.run_name(one) != study.run_name(study.recipe_of(tiny(), tiny().row("SGD"), "smoke", seed=1))


def test_a_row_of_another_study_is_that_studys():
    table = study.load("v2-table2")
    figure = study.load("landscape")
    assert study.recipe_of(figure, figure.rows[0], "cpu") == study.recipe_of(table, table.row("ATENT linf"), "cpu")


# ---- what is measured


def test_cells_say_what_they_are_of(made):
    _, result = made
    sgd, tuned, theirs = result["rows"]
    assert [cell["n"] for cell in sgd["cells"].values()] == [20, 10, 7]
    assert sgd["cells"]["half"]["threat"] == {"norm": "Linf", "eps": 0.075}
    assert sgd["cells"]["PGD"]["threat"]["eps"] == 0.15
    assert tuned["cells"]["half"] == {"skipped": "no time"}
    assert "cells" not in theirs
    assert (result["seed"], result["scale"], result["differs"]) == (0, "smoke", "all of it")
    assert len(sgd["validation"]) == sgd["recipe"]["epochs"] == 1


def test_fine_tuning_starts_from_the_other_rows_weights(made):
    out, result = made
    sgd, tuned, _ = result["rows"]
    assert tuned["recipe"]["init_from"] == study.run_name(study.recipe_of(tiny(), tiny().row("SGD"), "smoke"))
    assert (out / "runs" / tuned["recipe"]["init_from"] / "weights.safetensors").is_file()
    assert tuned["weights_sha256"] != sgd["weights_sha256"]


def test_the_written_result_names_no_folder_of_the_machine(made):
    out, result = made
    text = (out / "tiny.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(result))
    assert str(out) not in text


def test_a_second_call_measures_nothing_anew(made, monkeypatch):
    out, result = made

    def fail(*_, **__):
        raise AssertionError("measured or trained again")

    monkeypatch.setattr(reproduce, "measure", fail)
    reporter = loop.Silent()
    reporter.step = fail
    again = reproduce.reproduce(tiny(), Context("smoke", out / "runs", reporter=reporter), out / "tiny.json")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(result))


def test_an_interrupted_call_goes_on_with_the_next_cell(tmp_path, monkeypatch):
    measured, measure = [], reproduce.measure

    def break_off(subject, column, *rest):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(column.name)
        return measure(subject, column, *rest)

    monkeypatch.setattr(reproduce, "measure", break_off)
    small = tiny(rows=({"name": "SGD", "recipe": "linf-sgd"},))
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(small, Context("smoke", tmp_path / "runs"), tmp_path / "r.json")
    kept = json.loads((tmp_path / "r.json").read_text())["rows"][0]["cells"]
    measured[:] = []
    whole = reproduce.reproduce(small, Context("smoke", tmp_path / "runs"), tmp_path / "r.json")
    assert measured == ["half"]
    assert {name: whole["rows"][0]["cells"][name] for name in kept} == kept


def test_an_interrupted_call_keeps_what_it_has_not_reached(tmp_path, made, monkeypatch):
    out, result = made
    target = tmp_path / "tiny.json"
    target.write_text(json.dumps(result))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "measure", stop)
    more = tiny(scales={"smoke": tiny().scales["smoke"].model_copy(update={"n": 21}).model_dump()})
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(more, Context("smoke", out / "runs"), target)
    assert json.loads(target.read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("change", [{"draws": 300}, {"eps": 0.2}])
def test_cells_of_other_settings_are_measured_anew(tmp_path, made, change):
    out, _ = made
    column = {"name": "c", "certify": {"sigma": 0.05, "radius": 0.005}}
    found = []
    for draws, eps in ((200, 0.15), (change.get("draws", 200), change.get("eps", 0.15))):
        settings = {"recipes": "digits-{recipe}", "set": (*SMALL, f"threat.eps={eps}"), "n": 4, "certificates": draws}
        study_of = tiny(columns=(column,), rows=({"name": "SGD", "recipe": "linf-sgd"},), scales={"smoke": settings})
        made_now = reproduce.reproduce(study_of, Context("smoke", out / "runs"), tmp_path / "r.json")
        found.append((made_now["rows"][0]["threat"]["eps"], made_now["rows"][0]["cells"]["c"]["draws"]))
    assert found == [(0.15, 200), (change.get("eps", 0.15), change.get("draws", 200))]


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 3}', '{"study": "other", "rows": []}'])
def test_a_file_that_is_no_result_of_the_study_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadInput, match="name another --out"):
        reproduce.reproduce(tiny(), Context("smoke", tmp_path / "runs"), tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == text


def test_rows_of_other_scales_and_single_rows_of_times_are_refused(tmp_path):
    context = Context("cpu", tmp_path / "runs")
    with pytest.raises(BadInput, match="row of v2-table5 at scale cpu 'IBP'"):
        reproduce.reproduce(study.load("v2-table5"), context, tmp_path / "r.json", ["IBP"])
    with pytest.raises(BadInput, match="timed in turns"):
        reproduce.reproduce(study.load("v1-table1-mnist"), context, tmp_path / "r.json", ["SGD"])


def test_one_row_can_be_asked_for_and_the_others_are_kept(made, monkeypatch):
    out, result = made
    monkeypatch.setattr(reproduce, "_fill", lambda entry, *_: entry.update(cells={"new": {}}))
    again = reproduce.reproduce(tiny(), Context("smoke", out / "runs"), out / "tiny.json", ["tuned"])
    (out / "tiny.json").write_text(json.dumps(result, indent=1) + "\n")
    assert again["rows"][0] == json.loads(json.dumps(result["rows"][0]))
    assert again["rows"][1]["cells"] == {"new": {}}


def test_another_seeds_result_is_not_mixed_in(made):
    out, _ = made
    with pytest.raises(BadInput, match="holds seed 0, not 1"):
        reproduce.reproduce(tiny(), Context("smoke", out / "runs", seed=1), out / "tiny.json")


def test_a_run_that_was_interrupted_is_finished_not_begun_anew(tmp_path):
    context, chosen = (
        Context("smoke", tmp_path),
        tiny(scales={"smoke": {"recipes": "digits-{recipe}", "set": ("epochs=2",)}}),
    )
    row = chosen.row("SGD")

    class Stop(loop.Silent):
        def epoch(self, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(context.recipe(chosen, row), datasets.load("digits"), context.folder(chosen, row), reporter=Stop())
    assert len(rows.history(context.folder(chosen, row))) == 1
    assert len(rows.history(context.train(chosen, row))) == 2


def test_a_certificate_counts_only_right_answers_within_its_radius(made):
    out, _ = made
    chosen = tiny()
    subject = Context("smoke", out / "runs").subject(chosen, chosen.row("SGD"))
    flags = {}
    for radius in (0.0, 0.005, 0.011):
        column = Column(name="c", certify=Certify(sigma=0.05, radius=radius))
        setting = Scale(recipes="", n=60, certificates=200)
        cell = rows.measure(subject, column, Row(name="r", quoted="x"), setting, 0, {}, Runner(out), "c")
        assert cell["l2_radius"] == pytest.approx(8 * radius)  # sqrt(64) pixels
        flags[radius] = cell["flags"]
    assert all(a >= b >= c for a, b, c in zip(*flags.values(), strict=True))
    assert flags[0.0].count("1") > flags[0.011].count("1")
    column = Column(name="c", certify=Certify(sigma=0.05, norm="L2", radius=0.1))
    setting = Scale(recipes="", n=60, certificates=200)
    with pytest.raises(BadInput, match=r"no radius above 0\.09128 can be certified"):
        rows.measure(subject, column, Row(name="r", quoted="x"), setting, 0, {}, Runner(out), "c")


# ---- what is written of it


def result_of(flags):
    """A result of one AutoAttack column with these flags by row."""
    cells = {
        name: {"accuracy": text.count("1") / len(text), "n": len(text), "interval95_wilson": (0.1, 0.9), "flags": text}
        | {"attack": "AutoAttack", "correct": text.count("1"), "threat": {"norm": "L2"}, "notes": []}
        for name, text in flags.items()
    }
    rows = [
        {"name": name, "paper": {"AutoAttack": 50.0}, "note": "", "quoted": None, "data": "digits"}
        | {"recipe": {"objective": {"name": "sgd" if name == "SGD" else "other"}}, "threat": {"norm": "L2"}}
        | {"cells": {"AutoAttack": cell}}
        for name, cell in cells.items()
    ]
    quoted = {"name": "theirs", "paper": {"AutoAttack": 60.0}, "note": "", "quoted": "not ours"}
    return {
        **{
            "title": "T",
            "kind": "accuracy",
            "scale": "cpu",
            "seed": 0,
            "batch_size": 5,
            "differs": "much",
            "notes": "",
        },
        **{"command": "atent reproduce t", "columns": ["AutoAttack"], "rows": [*rows, quoted]},
        "machine": {"device": "cpu", "threads": 1, "python": "3"},
        "versions": {"torch": "2"},
    }


@pytest.mark.parametrize(
    ("ours", "rival", "alone", "p", "verdict"),
    [
        ("1" * 8 + "0" * 8, "0" * 16, (8, 0), 2 / 2**8, "wins"),
        ("0" * 16, "1" * 6 + "0" * 10, (0, 6), 2 / 2**6, "loses"),
        ("1" * 5 + "0" * 11, "0" * 16, (5, 0), 2 / 2**5, "ties"),
        ("1" * 8 + "0" * 8, "1" * 8 + "0" * 8, (0, 0), 1.0, "ties"),
    ],
)
def test_a_duel_is_mcnemars_exact_test(ours, rival, alone, p, verdict):
    (found,) = markdown.duels([result_of({"ATENT l2": ours, "PGD-AT": rival})])
    assert (found.ours, found.rival, found.images, found.verdict) == ("ATENT l2", "PGD-AT", 16, verdict)
    assert found.alone == alone
    assert found.p == pytest.approx(p)


def test_a_duel_is_of_networks_trained_for_the_norm_and_of_autoattack_as_published():
    other_norm, changed = (result_of({"ATENT": "10", "PGD-AT": "01", "SGD": "00"}) for _ in range(2))
    other_norm["rows"][1]["threat"] = {"norm": "Linf"}
    other_norm["rows"][2]["threat"] = {"norm": "Linf"}  # of plain training it says nothing
    changed["rows"][0]["cells"]["AutoAttack"]["attack"] = "AutoAttack, changed"
    assert [duel.rival for duel in markdown.duels([other_norm, changed])] == ["SGD"]


def test_our_methods_are_not_set_against_each_other():
    assert not list(markdown.duels([result_of({"ATENT": "10", "DESGD": "01"})]))


def test_the_page_puts_both_numbers_side_by_side():
    text = markdown.page([result_of({"ATENT": "1" * 9 + "0", "SGD": "0" * 10})], ["img/paper-x.png"])
    assert "- **ATENT** against plain training and Entropy-SGD: wins 1, ties 0, loses 0 of 1." in text
    assert "- **DESGD** against the other adversarial methods: not measured." in text
    assert "  - wins: T, AutoAttack: of 10 images ATENT alone keeps 9 and SGD alone 0, p 0.0039" in text
    assert "| ATENT | 90.0 (10.0-90.0), n 10 / 50.00 (+40.0) |" in text
    assert "| theirs | / 60.00 |" in text
    assert "- theirs: not ours." in text
    assert "![paper-x](img/paper-x.png)" in text
