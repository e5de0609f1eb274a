"""The script that trains the zoo, and the tables of docs/log/zoo.md."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import reports
import scripts
from commands import atent

from atent_ext.core import statistics
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.report import Report
from atent_ext.submissions import cards
from atent_ext.training import recipes


@pytest.fixture(scope="module")
def page():
    """eval/pages/write_zoo.py."""
    return scripts.module("pages/write_zoo")


@pytest.fixture(scope="module")
def zoo():
    """eval/experiments/zoo.py."""
    return scripts.module("experiments/zoo")


SIX_MORE = "of 8 images it alone keeps 6 and base alone 0, p 0.031 (PGD-40: 0 and 0, p 1)"


def scored(*flags, recipe="digits-linf-atent", notes=()):
    """Reports of one network a seed, each right under AutoAttack where its flags say 1, and everywhere else."""
    settings = {"split": "test, the first 8 of 9", "seed": 0, "chunk": 8, "speed": "plain", "weights_sha256": "ab"}
    settings |= {"machine": {"device": "cpu", "python": "3.11.7"}, "versions": {"torch": "2.15.0"}, "data": "digits"}
    settings |= {"threat": {"norm": "Linf", "eps": 0.15}}
    return [settings | {"recipe": dumped(recipe, seed), "results": results(f, notes)} for seed, f in enumerate(flags)]


def results(flags, notes):
    right, n = flags.count("1"), len(flags)
    won = {"flags": flags, "accuracy": right / n, "interval95_wilson": statistics.interval(right, n)}
    clean = {"attack": "clean", "flags": "1" * n, "accuracy": 1.0, "interval95_wilson": (0.5, 1.0), "notes": []}
    return [
        clean,
        clean | {"attack": "PGD-40"},
        {"attack": "AutoAttack", "version": "standard", "notes": list(notes)} | won,
    ]


def dumped(name, seed):
    return recipes.load(name, [f"seed={seed}"]).model_dump(mode="json")


def test_a_gain_over_seeds_is_the_mean_difference_with_its_t_interval(page):
    base = scored("0011", "0011", "0011")
    # Differences 25, 50, 0: mean 25, deviation 25; t of 2 degrees of freedom at 0.975 is 4.3027.
    assert page.difference(scored("0111", "1111", "1100"), base, "base") == "+25.0 points (-37.1 to +87.1) against base"
    assert page.difference(scored("1100", "1010", "0011"), base, "base") == "+0.0 points in every seed against base"
    assert (
        page.difference(scored("0111", "1011"), scored("0011", "0011"), "b") == "+25.0 points in every seed against b"
    )
    # One network each: McNemar's exact test; 6 against 0 is 2 / 2^6.
    alone = page.difference(scored("11111111"), scored("00000011"), "base")
    assert alone == f"better than base: {SIX_MORE}"
    held_out = {"split": "held out of training, the first 8 of 9"}
    with pytest.raises(BadInput, match=r"\('digits', 'test'\) and on \('digits', 'held out of training'\)"):
        page.difference(scored("1111"), [scored("0011")[0] | held_out], "base")


def test_an_entry_of_several_seeds_has_a_file_for_each(page):
    entry = page.Entry(recipe="digits-linf-atent", seeds=2)
    assert (entry.files("a"), page.Entry(recipe="digits-linf-atent").files("a")) == (["a-seed0", "a-seed1"], ["a"])
    assert [entry.load(seed).seed for seed in range(2)] == [0, 1]


def test_the_tables_say_what_the_reports_hold(page):
    base = page.Entry(recipe="digits-linf-atent", seeds=2)
    other = page.Entry(recipe="digits-linf-atent", set=("objective.noise=0",), seeds=2, against=("base",))
    found = {"base": scored("0011", "0111"), "other": scored("1111", "1111"), "none": []}
    lines = list(page.ablation(found, {"base": base, "other": other, "none": other}))
    all_right = "100.0 (100.0 to 100.0)"
    assert lines[2] == f"| base | digits-linf-atent | 2 | {all_right} | {all_right} | 62.5 (50.0 to 75.0) |  |"
    assert lines[3].endswith("| 100.0 (100.0 to 100.0) | +37.5 points (-121.3 to +196.3) against base |")
    how = "test, the first 8 of 9; AutoAttack standard; seed 0, chunks of 8 images; speed plain; cpu, Python 3.11.7"
    assert lines[4:] == ["", f"- Scored (base, other): {how}, torch 2.15.0.", "\nNot done yet: none.\n"]
    alone = page.Entry(recipe="digits-linf-atent", against=("base", "absent"))
    found = {"base": scored("00000011", notes=["weak"]), "other": scored("11111111"), "absent": []}
    lines = list(page.models(found, {"base": base, "other": alone, "absent": alone}, {}))
    assert lines[0] == "## digits, Linf eps 0.15\n"
    assert (
        lines[3] == "| base | digits-linf-atent | float32 |  |  | 100.0 (50.0-100.0) |  |  |  | 25.0 (7.1-59.1) |  |  |"
    )
    assert [page.proven({"n": 8, "results": [{}, {"proven": count}]}) for count in (0, 6)] == ["", "75.00"]
    assert lines[5:7] == ["", f"- other is better than base: {SIX_MORE}."]
    assert lines[8] == "- base, AutoAttack: weak"
    assert lines[9].startswith("- Recipe digits-linf-atent: ATENT (Jagatap et al. 2022, Algorithm 2) on scikit-learn's")


def test_an_entry_that_was_trained_and_not_scored_shows_its_training(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page.measured, "REPORTS", tmp_path)
    (tmp_path / "metrics").mkdir()
    epochs = [{"robust": 0.5, "selected": True, "seconds": 10}, {"robust": 0.25, "selected": False, "seconds": 5}]
    for name in ("base", "trained"):
        (tmp_path / "metrics" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, epochs)))
    entry = page.Entry(recipe="digits-linf-atent")
    found = {"base": scored("00000011"), "trained": [], "none": []}
    lines = list(page.search(found, dict.fromkeys(found, entry)))
    scores = "100.0 (50.0-100.0) | 100.0 (50.0-100.0) | 25.0 (7.1-59.1)"
    assert lines[2] == f"| base | digits-linf-atent | float32 | 50.0 | 15 | {scores} |"
    assert lines[3] == "| trained | digits-linf-atent | float32 | 50.0 | 15 |  |  |  |"
    assert lines[6] == "- Trained and not scored here: trained."
    assert lines[8:] == ["\nNot done yet: none.\n"]


def test_a_report_of_another_recipe_is_refused(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page.measured, "REPORTS", tmp_path)
    (tmp_path / "search").mkdir()
    scored = reports.report(reports.result("clean"), recipe=dumped("digits-linf-atent", 0))
    (tmp_path / "search" / "one.json").write_text(scored.model_dump_json())
    entry = page.Entry(recipe="digits-linf-atent")
    assert len(page.measured.reports({("search", "one"): entry})["one"]) == 1
    with pytest.raises(BadInput, match=r"one\.json is of another recipe than the entry one; score it anew"):
        page.measured.reports({("search", "one"): entry.model_copy(update={"set": ("epochs=1",)})})
    assert page.measured.reports({("search", "one"): entry.model_copy(update={"seeds": 2})}) == {"one": []}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search:\n  two: {recipe: a, m: 4}\n", r"search\.two\.m\n +Extra inputs are not permitted"),
        ("search:\n  two: {recipe: a, n: 0}\n", r"search\.two\.n\n +Input should be greater than or equal to 1"),
        ("search:\n  two: {recipe: a, against: [three]}\n", "two is to be compared with three, which is no entry"),
        ("search:\n  one: {recipe: a, seeds: 2}\n  two: {recipe: a, against: [one]}\n", "two has 1 seeds and one 2"),
        ("search:\n  two: {recipe: a}\nmodels:\n  two: {recipe: a}\n", "has two entries two; rename one"),
        ("search: [\n", r"zoo\.yaml does not fit: while parsing"),
        (b"\xff", r"zoo\.yaml does not fit: 'utf-8' codec"),
    ],
)
def test_entries_that_do_not_fit_are_refused(page, tmp_path, text, said):
    file = tmp_path / "zoo.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=said):
        page.measured.entries(file)


def test_what_an_entry_starts_from_is_trained_before_it(zoo, tmp_path):
    trained = []
    runner = SimpleNamespace(out=tmp_path, train=lambda recipe, name: trained.append(name))
    base = zoo.Entry(recipe="digits-linf-sgd", set=("epochs=1",))
    tuned = zoo.Entry(recipe="digits-linf-sgd", set=(f"init_from=zoo/runs/{zoo.digest(base.load())}",))
    known = {("search", "tuned"): tuned, ("search", "other"): tuned, ("search", "base"): base}
    zoo.train(tuned.load(), known, runner)
    assert trained == [f"runs/{zoo.digest(entry.load())}" for entry in (base, tuned)]


@pytest.mark.integration
def test_the_zoo_is_trained_and_scored_by_its_entries(zoo, tmp_path, monkeypatch):
    verified = []

    def here(command):
        """The command that it starts, in this process."""
        assert command[:4] == [sys.executable, "-m", "atent_ext", "verify"]
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
        verified.append(command[4])
        return atent(*command[3:])

    monkeypatch.setattr(zoo, "subprocess", SimpleNamespace(run=here))
    tiny = "recipe: digits-linf-sgd, n: 4, set: [epochs=1, validation.count=50, threat.eps=0.5]"
    (tmp_path / "zoo.yaml").write_text(f"models:\n  one: {{{tiny}}}\nsearch:\n  two: {{{tiny}}}\nablation: {{}}\n")
    for _ in range(2):  # the second time there is nothing to do
        done = scripts.run("experiments/zoo", "--file", tmp_path / "zoo.yaml", "--out", tmp_path / "zoo")
        assert done.returncode == 0, done.stderr
    assert len(verified) == 1
    card = cards.read_card(tmp_path / "zoo" / "models" / "one.card.json")
    assert card.submission.training.endswith("Recipe: digits-linf-sgd.")
    searched = Report.load(tmp_path / "zoo" / "search" / "two.json")
    assert searched.split == "held out of training, the first 4 of 50"
    assert searched.weights_sha256 == card.weights["sha256"]  # one training served both
    (run,) = (tmp_path / "zoo" / "runs").iterdir()
    done = scripts.run("experiments/zoo", "three")
    assert done.returncode == 2
    assert done.stderr.startswith("atent: three is no entry of zoo.yaml; it has: mnist-linf-atent, ")
    entry = zoo.Entry(recipe="digits-linf-sgd", n=5)
    for group, name in (("models", "one"), ("search", "two")):
        with pytest.raises(BadInput):
            zoo.score(
                group,
                name,
                entry,
                zoo.RunFolder(run),
                zoo.Runner(tmp_path / "zoo"),
                250,
                "channels-last",
            )
