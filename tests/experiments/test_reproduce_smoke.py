"""Every table and figure of the papers at its smallest scale, on digits: the figures that come out are asserted."""

import json
from itertools import pairwise

import pytest
import studies

from atent_ext.core import registry
from atent_ext.experiments import study
from atent_ext.experiments.reproduce import reproduce
from atent_ext.experiments.rows import Context

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A function from a study's name to its result; runs are shared between studies."""
    out, load = tmp_path_factory.mktemp("smoke"), study.load

    def result(name):
        target = out / f"{name}-smoke.json"
        if not target.exists():
            reproduce(study.load(name), Context("smoke", out / "runs"), target)
        return json.loads(target.read_text())

    result.out = out
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.MODELS, "digits-cnn", "studies:DigitsNet")
        patch.setattr(study, "load", lambda name: studies.lighter(load(name)))
        yield result


def accuracies(result):
    """Row -> column -> accuracy in %."""
    return {
        row["name"]: {name: 100 * cell["accuracy"] for name, cell in row.get("cells", {}).items() if "accuracy" in cell}
        for row in result["rows"]
    }


def test_table_1_training_against_an_attack_withstands_it_in_l2(smoke):
    found = accuracies(smoke("v2-table1"))
    assert min(row["benign"] for row in found.values()) > 80
    for name in ("PGD-AT l2", "TRADES", "ATENT l2"):
        assert found[name]["PGD-40"] >= found["SGD"]["PGD-40"] + 15, name


def test_table_2_training_against_an_attack_withstands_it_in_linf(smoke):
    found = accuracies(smoke("v2-table2"))
    assert min(row["benign"] for row in found.values()) > 80
    plain = max(found["SGD"]["PGD-40"], found["Entropy-SGD"]["PGD-40"])
    for name in ("PGD-AT linf", "TRADES", "MMA", "MART", "ATENT linf"):
        assert found[name]["PGD-40"] >= plain + 15, name
        assert found[name]["PGD-20"] >= found[name]["PGD-40"]  # 20 steps of 0.01 reach less far


def test_table_3_minimal_distances_are_judged_at_the_radius(smoke):
    for name, row in accuracies(smoke("v2-table3")).items():
        assert row["benign"] > 80, name
        assert row["DeepFool"] < row["PGD-20"], name  # 20 steps of 0.003 do not leave the neighbourhood
    early, last = (smoke("v2-table3")["rows"][k]["recipe"]["validation"]["select"] for k in (1, 0))
    assert (early, last) == ("robust", "last")


def test_table_4_accuracy_falls_with_the_radius(smoke):
    found = accuracies(smoke("v2-table4"))
    for name in ("PGD-AT", "ATENT l2", "TRADES (smooth)", "ATENT l2 (smooth)"):
        columns = [found[name][column] for column in ("benign", "PGD-10 at 0.435", "PGD-10 at 0.5", "PGD-10 at 1")]
        assert columns == sorted(columns, reverse=True), name
        assert columns[1] > 50 > columns[3], name
    assert found["PGD-AT WRN-28-4"] == {}


def test_table_5_certificates_hold_less_than_the_answers(smoke):
    found = accuracies(smoke("v2-table5"))
    for name in ("Smoothing", "TRADES smoothing", "ATENT"):
        assert found[name]["standard"] >= found[name]["certified 2/255"] > 60, name
    assert found["IBP"]["benign without noise"] >= found["IBP"]["certified 2/255 by intervals"] > 60


def test_table_6_both_attacks_are_measured_at_four_radii(smoke):
    (row,) = accuracies(smoke("v2-table6")).values()
    for attack in ("PGD-20", "ATENT-20", "ATENT-20 every"):
        robust = [row[f"{attack} at {radius}"] for radius in ("1/4", "1/2", "1", "3/2")]
        assert robust == sorted(robust, reverse=True)
        assert robust[0] - robust[3] > 30
    assert abs(row["ATENT-20 every at 1"] - row["PGD-20 at 1"]) <= 5


def test_fine_tuning_makes_benign_weights_robust(smoke):
    found = accuracies(smoke("v2-finetune"))
    start, tuned = found["benign training"], found["ATENT fine-tuned"]
    assert tuned["PGD-20"] >= start["PGD-20"] + 25
    assert tuned["benign"] > 90


def test_the_headlines_radius_is_small_for_digits(smoke):
    (row,) = accuracies(smoke("v1-headline")).values()
    assert row["benign"] >= row["PGD-20"] > 80


@pytest.mark.parametrize(("name", "far"), [("v1-fig1", "Linf 0.15"), ("v1-fig2", "Linf 0.1"), ("v1-fig3", "Linf 0.15")])
def test_curves_fall_from_the_benign_accuracy(smoke, name, far):
    found = accuracies(smoke(name))
    for row, columns in found.items():
        for norm in ("L2", "Linf"):
            curve = [accuracy for column, accuracy in columns.items() if column.startswith(f"{norm} ")]
            if curve:
                assert curve[0] == columns["benign"], row
                assert all(later <= earlier + 4 for earlier, later in pairwise(curve)), row
    assert found["PGD ℓ∞"][far] >= found["SGD"][far] + 10
    for file in smoke(name)["files"]:
        assert (smoke.out / file).stat().st_size > 5000


@pytest.mark.parametrize(("name", "ratios"), [("v1-table1-mnist", (1.44, 3.02)), ("v1-table1-cifar10", (1.22, 2.45))])
def test_times_are_ratios_to_plain_training(smoke, name, ratios):
    rows = {row["name"]: row for row in smoke(name)["rows"]}
    assert rows["SGD"]["ratio"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert rows["Entropy-SGD"]["paper_ratio"] == pytest.approx(ratios[0], abs=0.005)
    assert rows["DESGD ℓ∞"]["paper_ratio"] == pytest.approx(ratios[1], abs=0.005)
    assert all(row["ratio"]["least"] <= row["ratio"]["median"] <= row["ratio"]["most"] for row in rows.values())


@pytest.mark.parametrize("name", ["v1-fig4", "v2-fig1", "v2-fig2", "v2-fig3", "landscape"])
def test_a_figure_is_a_picture_and_vectors(smoke, name):
    stem = f"{name}-smoke-{study.load(name).draws}"
    files = smoke(name)["files"]
    assert files[:2] == [f"{stem}.png", f"{stem}.svg"]
    assert (smoke.out / files[0]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (smoke.out / files[1]).read_text().startswith("<?xml")


@pytest.mark.parametrize("name", ["v2-fig1", "v2-fig2"])
def test_the_numbers_of_a_figure_lie_beside_it(smoke, name):
    numbers = json.loads((smoke.out / smoke(name)["files"][2]).read_text())
    assert numbers["seed"] == 0
