"""Models by name: the weights are those of the card, or there is an error."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
import torch

import atent_ext
from atent_ext import subjects
from atent_ext.attacks import accuracy
from atent_ext.core import registry, statistics
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.subjects import run_folder, zoo
from atent_ext.submissions import cards
from atent_ext.training import recipes
from atent_ext.training.loop import fit

BEST = "mnist-linf-atent"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The cards and the weights of one model, in a folder that a test may spoil."""
    (card, *_), weights = zoo.find(BEST)
    shutil.copytree(registry.folder("card") / card.place.parent, tmp_path / "card" / card.place.parent)
    (tmp_path / "weights").mkdir()
    shutil.copy(weights, tmp_path / "weights")
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path / kind)
    return tmp_path


def test_every_weights_file_has_its_card_and_loads():
    assert BEST in zoo.names()
    for name in zoo.names():
        (card, *_), path = zoo.find(name)
        assert card.submission.name == name
        assert path.stat().st_size < 5_000_000
        network = atent_ext.load(name)
        assert not network.training
        assert sum(p.numel() for p in network.parameters()) == card.weights["parameters"]
    assert sum(zoo.find(name)[1].stat().st_size for name in zoo.names()) < 40_000_000


def test_loading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = atent_ext.load(BEST), atent_ext.load(BEST)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_a_file_that_is_not_the_cards_is_refused(copied):
    path = copied / "weights" / f"{BEST}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"atent\.safetensors has SHA-256 [0-9a-f]{64}, and the card of .* is of"):
        atent_ext.load(BEST)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *_: SimpleNamespace(test=None, name="mnist", note=""))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_is_a_model_and_a_path_says_how_to_say_each(no_data, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for known in (BEST, f"zoo:{BEST}"):
        assert subjects.load(known).about.name == BEST
    assert "does not exist" in str(refusal(f"./{BEST}"))
    (tmp_path / BEST).mkdir() if kind == "folder" else (tmp_path / BEST).touch()
    for both in (BEST, Path(BEST)):
        error = refusal(both)
        assert (error.code, error.field) == ("conflict", "subject")
        assert f"{BEST} is a {kind} here and a model of the zoo; say ./{BEST} for the {kind}, or zoo:{BEST}" in str(
            error
        )
    assert subjects.load(f"zoo:{BEST}").about.name == BEST
    said = "there is no recipe.yaml in it" if kind == "folder" else "a weights file needs --model, --dataset and --eps"
    for path in (f"./{BEST}", f"{tmp_path}/{BEST}", tmp_path / BEST, *([f"{BEST}/"] if kind == "folder" else [])):
        assert said in str(refusal(path))


def test_a_prefix_names_a_zoo_and_a_separator_a_path(no_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no model 'mnist-linf-atnet' in the zoo" in str(refusal("zoo:mnist-linf-atnet"))
    assert "drop --model and --dataset" in str(refusal(f"zoo:{BEST}", model="small-cnn"))
    assert refusal(f"zoo:{BEST}", held_out=True).field == "held_out"
    for prefix in ("zoo:", "robustbench:"):
        (tmp_path / f"{prefix}{BEST}").mkdir()
        assert "there is no recipe.yaml in it" in str(refusal(f"./{prefix}{BEST}"))


def refusal(*arguments, **options):
    with pytest.raises(BadInput) as error:
        subjects.load(*arguments, **options)
    return error.value


def test_of_cards_under_several_threat_models_one_is_asked_for(copied, no_data):
    (card, *_), _ = zoo.find(BEST)
    threat = Threat(norm="L2", eps=2.0)
    other = card.model_copy(update={"submission": card.submission.model_copy(update={"threat": threat})})
    cards.write_card(other, copied / "card" / other.place)
    assert set(map(type, atent_ext.load(BEST).children())) == {torch.nn.Sequential}
    with pytest.raises(BadInput, match=f"^{BEST} has cards under L2 2, Linf 0.3; give --norm and --eps$"):
        subjects.load(Path(BEST))
    assert subjects.load(Path(BEST), norm="Linf", eps=0.3).threat == card.submission.threat


def test_weights_without_a_card_are_refused(copied):
    shutil.rmtree(copied / "card")
    (copied / "card").mkdir()
    with pytest.raises(BadInput, match="has no card"):
        atent_ext.load(BEST)


@pytest.mark.parametrize("name", ["mnist-linf-atnet", "", "../mnist-linf-atent", "*", "a\nb", None])
def test_an_unknown_name_is_told_what_there_is(name):
    with pytest.raises(BadInput, match=r"there is no model .* in the zoo; the zoo has: .*mnist-linf-atent"):
        atent_ext.load(name)


def test_a_model_with_a_card_alone_says_so():
    with pytest.raises(BadInput, match="has a card of advertorch-lenet5-clean, but not its weights"):
        atent_ext.load("advertorch-lenet5-clean")


@pytest.mark.data
@pytest.mark.parametrize("name", zoo.names())
def test_the_cards_clean_flags_are_reproduced(name, data_root):
    (card, *_), _ = zoo.find(name)
    test = datasets.load(card.submission.dataset, data_root).test.take(card.report.result("clean").n)
    assert torch.equal(accuracy.clean_flags(atent_ext.load(name), test), card.report.flags("clean"))


@pytest.mark.data
def test_eval_takes_a_name(tmp_path, data_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = commands.atent("eval", BEST, "--protocol", "quick", "--n", 20, "--data-root", data_root)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"runs/{BEST}-*/eval-quick-Linf-0.3-n20-seed0.json")
    report, card = Report.load(path), zoo.find(BEST)[0][0]
    assert report.weights_sha256 == card.weights["sha256"]
    assert torch.equal(report.flags("clean"), card.report.flags("clean")[:20])


def test_names_that_are_not_in_the_zoo_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["mnist-linf-atnet"], "mnist-linf-atnet does not exist; give a run folder or a weights file; the zoo has:"),
        ([BEST, "--model", "small-cnn"], "drop --model and --dataset"),
        ([BEST, "--held-out"], f"{BEST} is a model of a zoo, and only a run says which images it held out; leave out"),
        (["nowhere", "--held-out"], "nowhere does not exist"),
    ):
        commands.refused(commands.atent("eval", *arguments), said)
    (tmp_path / BEST).mkdir()
    commands.refused(commands.atent("eval", BEST), f"./{BEST} for the folder, or zoo:{BEST} for the model")
    commands.refused(commands.atent("eval", f"./{BEST}", "--held-out"), "recipe.yaml")


# ---- docs/zoo.md and the script that trains


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "eval" / name, *arguments], capture_output=True, text=True, timeout=240
    )


@pytest.mark.integration
def test_the_page_is_what_its_script_writes(tmp_path):
    done = script("pages/write_zoo.py", "--out", tmp_path / "zoo.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "zoo.md").read_text() == (ROOT / "docs" / "zoo.md").read_text()


@pytest.fixture
def page(monkeypatch):
    """eval/pages/write_zoo.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "eval" / "experiments")
    monkeypatch.syspath_prepend(ROOT / "eval" / "pages")
    return importlib.import_module("write_zoo")


SIX_MORE = "of 8 images it alone keeps 6 and base alone 0, p 0.031 (PGD-40: 0 and 0, p 1)"


def scored(*flags, recipe="digits-linf-atent", notes=()):
    """Reports of one network a seed, each right under AutoAttack where its flags say 1, and everywhere else."""
    settings = {"split": "test, the first 8 of 9", "seed": 0, "chunk": 8, "speed": "plain", "weights_sha256": "ab"}
    settings |= {"machine": {"device": "cpu", "python": "3.11.7"}, "versions": {"torch": "2.15.0"}, "data": "digits"}
    settings |= {"threat": {"norm": "Linf", "eps": 0.15}}
    return [settings | {"recipe": dumped(recipe, seed), "results": results(f, notes)} for seed, f in enumerate(flags)]


def whole(flags):
    """A report of version 1 that lacks nothing."""
    (one,) = scored(flags)
    counts = [result | {"correct": result["flags"].count("1"), "n": len(flags)} for result in one["results"]]
    about = {"name": "one", "model": "net", "protocol": "autoattack", "batch_size": 8}
    return one | about | {"results": counts}


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
    assert lines[3] == "| base | digits-linf-atent | float32 |  |  | 100.0 (50.0-100.0) |  |  |  | 25.0 (7.1-59.1) |"
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
    (tmp_path / "search" / "one.json").write_text(json.dumps(whole("00000001")))
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


def test_what_an_entry_starts_from_is_trained_before_it(page, tmp_path, monkeypatch):
    zoo, trained = importlib.import_module("zoo"), []
    monkeypatch.setattr(zoo.Runner, "train", lambda self, recipe, name: trained.append(name))
    base = page.Entry(recipe="digits-linf-sgd", set=("epochs=1",))
    tuned = page.Entry(recipe="digits-linf-sgd", set=(f"init_from=zoo/runs/{zoo.digest(base.load())}",))
    known = {("search", "tuned"): tuned, ("search", "other"): tuned, ("search", "base"): base}
    zoo.train(tuned.load(), known, zoo.Runner(tmp_path))
    assert trained == [f"runs/{zoo.digest(entry.load())}" for entry in (base, tuned)]


@pytest.mark.integration
def test_the_zoo_is_trained_and_scored_by_its_entries(page, tmp_path):
    tiny = "recipe: digits-linf-sgd, n: 4, set: [epochs=1, validation.count=50]"
    (tmp_path / "zoo.yaml").write_text(f"models:\n  one: {{{tiny}}}\nsearch:\n  two: {{{tiny}}}\nablation: {{}}\n")
    for _ in range(2):  # the second time there is nothing to do
        done = script("experiments/zoo.py", "--file", tmp_path / "zoo.yaml", "--out", tmp_path / "zoo")
        assert done.returncode == 0, done.stderr
    assert "written" not in done.stdout
    card = cards.read_card(tmp_path / "zoo" / "models" / "one.card.json")
    assert card.submission.training.endswith("Recipe: digits-linf-sgd.")
    searched = Report.load(tmp_path / "zoo" / "search" / "two.json")
    assert searched.split == "held out of training, the first 4 of 50"
    assert searched.weights_sha256 == card.weights["sha256"]  # one training served both
    assert len(list((tmp_path / "zoo" / "runs").iterdir())) == 1
    done = script("experiments/zoo.py", "three")
    assert done.returncode == 2
    assert done.stderr.startswith("atent: three is no entry of zoo.yaml; it has: mnist-linf-atent, ")
    run = next((tmp_path / "zoo" / "runs").iterdir())
    zoo_script = importlib.import_module("zoo")
    folder = zoo_script.RunFolder(run)
    with pytest.raises(BadInput, match=r"two\.json was made with n = 4, not 5; "):
        zoo_script.score("search", "two", 5, folder, zoo_script.Runner(tmp_path / "zoo"), 250, "plain")


@pytest.mark.integration
def test_short_chains_are_counted_on_the_held_out_images_that_apgd_broke(page, tmp_path):
    recipe = recipes.load("digits-linf-pgd-at", ["epochs=2", "validation.count=50"])
    fit(recipe, datasets.load("digits"), tmp_path / "run")
    apgd, starts = tmp_path / "apgd.json", tmp_path / "starts.json"
    done = script("experiments/held_out.py", tmp_path / "run", "--n", "40", "--out", apgd)
    assert done.returncode == 0, done.stderr
    found = json.loads(apgd.read_text())
    held_out = run_folder.from_run(tmp_path / "run", held_out=True)
    clean = int(accuracy.clean_flags(held_out.model, held_out.test.take(40)).sum())
    assert found["images"] == "the first 40 held-out images"
    assert found["robust_after"] == {"clean": clean, "apgd-ce": found["correct"]}
    assert found["flags"].count("1") == found["correct"] < clean
    done = script("experiments/starts.py", tmp_path / "run", apgd, "--repeats", "3", "--out", starts)
    assert done.returncode == 0, done.stderr
    counted = json.loads(starts.read_text())
    broken = clean - found["correct"]
    assert (counted["broken_images"], counted["eps"]) == (broken, 0.15)
    for chain in counted["chains"]:
        assert len(chain["broken"]) == 3
        assert broken - sum(chain["broken"]) <= chain["left_by_all"] <= broken - max(chain["broken"])
    assert sum(map(sum, (chain["broken"] for chain in counted["chains"]))) > 0
    done = script("experiments/held_out.py", tmp_path / "run", "--n", "100", "--trained-on", "--out", apgd)
    assert done.returncode == 0, done.stderr
    kept = datasets.hold_out(datasets.load("digits").train, 50, recipe.seed)[0]
    assert torch.equal(importlib.import_module("held_out")._trained_on(tmp_path / "run").images, kept.images)
    right = int(accuracy.clean_flags(held_out.model, kept.take(100)).sum())
    assert json.loads(apgd.read_text())["robust_after"]["clean"] == right
    done = script("experiments/starts.py", tmp_path / "run", apgd, "--out", starts)
    assert done.returncode == 2
    assert done.stderr.endswith("is of the first 100 training images; run held_out.py without --trained-on\n")
    assert done.stderr.count("\n") == 1
    for report, said in (
        (found | {"weights_sha256": "0"}, "; run held_out.py on it first"),
        (found | {"threat": {"norm": "L2", "eps": 1}}, "is of L2; the chains are of Linf, so give a run of that"),
    ):
        apgd.write_text(json.dumps(report))
        with pytest.raises(BadInput, match=re.escape(said)):
            importlib.import_module("starts")._report(apgd, tmp_path / "run", found["weights_sha256"])
