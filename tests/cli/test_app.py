"""The command line, run as a user runs it."""

import json
import re
import signal
import subprocess
import sys

import pytest
import scripts
from commands import TINY, atent, refused, shell

from atent_ext.attacks import accuracy
from atent_ext.cli import catalog
from atent_ext.core.version import __version__
from atent_ext.data import datasets
from atent_ext.evaluation import engine
from atent_ext.evaluation.protocol import Protocol
from atent_ext.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = atent("train", "digits-linf-atent", *TINY, "--seed", 3, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_version():
    done = atent("--version")
    assert (done.returncode, done.stdout) == (0, f"atent-ext {__version__}\n")


def test_train_prints_each_epoch_and_writes_the_run(run):
    folder, output = run
    assert "digits-linf-atent epoch 1: loss" in output
    assert "robust" in output
    assert {"recipe.yaml", "metrics.jsonl", "weights.safetensors", "state.pt"} <= {p.name for p in folder.iterdir()}
    assert "seed: 3" in (folder / "recipe.yaml").read_text()


def test_a_run_folder_is_not_overwritten_in_silence(run):
    folder, _ = run
    before = (folder / "weights.safetensors").read_bytes()
    again = ["train", "digits-linf-atent", *TINY, "--seed", 3, "--out", folder]
    refused(atent(*again), str(folder), "--resume", "--overwrite")
    refused(atent(*again, "--resume", "--overwrite"), "--resume", "--overwrite")
    refused(atent(*again, "--set", "optimizer.lr=0.01", "--resume"), "optimizer")
    refused(atent("train", "digits-linf-atent", "--out", folder.parent / "typo", "--resume"), "typo", "no run")
    for options in (again, ["train", "digits-linf-atent", "--out", folder]):
        resumed = atent(*options, "--resume")  # nothing is left to do
        assert resumed.returncode == 0, resumed.stderr
    assert (folder / "weights.safetensors").read_bytes() == before


def test_eval_scores_a_run(run):
    folder, _ = run
    done = atent("eval", folder, "--protocol", "quick", "--n", 50)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "eval-quick-Linf-0.15-n50-seed0.json").read_text())
    assert [result["attack"] for result in report["results"]] == ["clean", "FGSM", "PGD-20", "worst case"]
    assert report["threat"] == {"norm": "Linf", "eps": 0.15}
    assert report["recipe"]["seed"] == 3
    for result in report["results"]:
        assert result["n"] == 50
        assert result["correct"] == result["flags"].count("1")
        assert f"{result['correct']}/50" in done.stdout
    worst = report["results"][-1]["flags"]
    assert worst == "".join(min(bits) for bits in zip(*(r["flags"] for r in report["results"][:-1]), strict=True))


def test_eval_takes_another_radius_and_a_weights_file(run, tmp_path):
    folder, _ = run
    target = tmp_path / "report.json"
    weights = folder / "weights.safetensors"
    named = ["--model", "digits-cnn", "--dataset", "digits"]
    done = atent("eval", weights, *named, "--eps", 0, "--protocol", "quick", "--n", 50, "--out", target)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    clean, *attacked = (result["flags"] for result in report["results"])
    assert attacked == [clean] * 3  # at eps 0 no attack can change anything


def test_eval_scores_the_images_that_a_run_held_out(run, tmp_path):
    folder, _ = run
    done = atent("eval", folder, "--held-out", "--protocol", "quick", "--n", 30)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "eval-quick-held-out-Linf-0.15-n30-seed0.json").read_text())
    assert (report["part"], report["n"], report["total"]) == ("held out of training", 30, 60)
    images = datasets.load("digits")
    _, held_out = datasets.hold_out(images.train, 60, 3)  # the recipe's count and seed
    network = RunFolder(folder).load_model(images)
    flags = accuracy.clean_flags(network, held_out.take(30))
    assert report["results"][0]["flags"] == "".join("01"[flag] for flag in flags.tolist())
    named = ["--model", "digits-cnn", "--dataset", "digits", "--eps", 0.1]
    weights = folder / "weights.safetensors"
    refused(atent("eval", weights, *named, "--held-out"), str(weights), "is no run folder, whose recipe says which")
    written = ("submission", "new", folder, "--out", tmp_path / "sub", "--authors", "A", "--license", "MIT")
    claims = folder / "eval-quick-held-out-Linf-0.15-n30-seed0.json"
    refused(atent(*written, "--report", claims), "a report on images held out of training, the first 30 of 60; claims")


def test_a_finished_evaluation_is_shown_and_replaced_only_if_told(run, tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    setting = ["eval", run[0], "--protocol", "quick", "--n", 10, "--out", target]
    first = atent(*setting)
    assert f"written: {target}" in first.stdout
    before = target.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", lambda *_: pytest.fail("it was scored again"))
        again = atent(*setting)
        assert again.returncode == 0, again.stderr
        for change in (
            ["--speed", "plain"],
            ["--batch-size", 5],
            ["--chunk", 5],
            ["--eps", 0.1],
            ["--protocol", "pgd"],
        ):
            refused(atent(*setting, *change), f"{target} was made with ", ", not ", "--overwrite", "another --out")
    assert again.stdout.replace("written earlier, and nothing was scored (--overwrite scores anew)", "written") == (
        first.stdout
    )
    assert target.read_bytes() == before
    assert atent(*setting, "--chunk", 5, "--overwrite").returncode == 0
    assert json.loads(target.read_text())["chunk"] == 5
    target.write_text("notes of mine")
    refused(atent(*setting), f"{target} is there and no report of `atent eval`", "--overwrite")
    assert target.read_text() == "notes of mine"


def test_an_override_of_the_radius_is_followed_aloud_or_refused(tmp_path):
    changes = [*TINY, "--set", "epochs=1", "--set", "threat.eps=0.05", "--set", "name=mine"]
    done = atent("train", "digits-linf-atent", *changes, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    said = "note: objective.eps follows threat.eps: 0.05 instead of 0.15; objective.step_size stays 0.0375"
    assert said in " ".join(done.stdout.split())
    assert RunFolder(tmp_path / "run").recipe().objective["eps"] == 0.05
    refused(atent("train", "digits-linf-mma", "--set", "threat.eps=0.05", "--out", tmp_path / "other"), "objective.eps")
    assert not (tmp_path / "other").exists()


LAUNCHED = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "command",
    [
        *("certify run --sigma 1", "export run --out zoo", "quickstart", "reproduce v2-table2", "plot density"),
        *("board --out site", "submit card.json", "submission new run --out sent --authors A --license MIT"),
    ],
)
def test_what_several_processes_cannot_share_is_refused_by_the_first(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    other = atent(*command.split())
    assert (other.returncode, other.stdout, other.stderr) == (0, "", "")
    monkeypatch.setenv("RANK", "0")
    refused(atent(*command.split()), f"{command.split()[0]} works in one process, and 2 were started; start it without")
    assert list(tmp_path.iterdir()) == []
    assert atent("--version").returncode == 0


@pytest.mark.parametrize(("rank", "said"), [("0", "atent: ls was interrupted; nothing was saved\n"), ("1", "")])
def test_of_several_processes_that_a_launcher_ends_the_first_says_so(monkeypatch, rank, said):
    for name, value in (LAUNCHED | {"RANK": rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(catalog.KINDS, "recipes", (lambda: (_ for _ in ()).throw(KeyboardInterrupt), ""))
    done = atent("ls", "recipes")
    assert (done.returncode, done.stderr) == (130, said)


def interrupted(monkeypatch, done, *arguments):
    """An evaluation that fails after `done` chunks."""
    score, calls = engine.score, []

    def failing(*args):
        if len(calls) == done:
            raise OSError("no space left")
        calls.append(score(*args))

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", failing)
        refused(atent("eval", *arguments), "no space left")


def test_eval_goes_on_where_it_was_interrupted(run, tmp_path, monkeypatch):
    setting = [run[0], "--protocol", "quick", "--n", 30, "--chunk", 8, "--speed", "plain"]
    assert atent("eval", *setting, "--out", tmp_path / "whole.json").returncode == 0
    target = tmp_path / "parts.json"
    interrupted(monkeypatch, 3, *setting, "--out", target)
    refused(atent("eval", *setting, "--seed", 1, "--out", target), "seed = 0, not 1", "parts.json.chunks")
    done = atent("eval", *setting, "--out", target)
    assert done.returncode == 0, done.stderr
    assert "going on where it stopped: 3 of 4 chunks are done, about" in done.stdout
    whole, parts = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "parts.json"))
    assert [result["flags"] for result in whole["results"]] == [result["flags"] for result in parts["results"]]
    assert (parts["chunk"], parts["batch_size"], parts["speed"], parts["processes"]) == (8, 8, "plain", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "parts.json"}


@pytest.mark.integration
def test_two_processes_share_an_evaluation_that_one_began(run, tmp_path, monkeypatch):
    setting = [run[0], "--protocol", "quick", "--n", 50, "--chunk", 10]
    assert atent("eval", *setting, "--out", tmp_path / "whole.json").returncode == 0
    target = tmp_path / "parts.json"
    interrupted(monkeypatch, 2, *setting, "--out", target)
    # After "--" nothing is torchrun's, which would take --n for an option of its own.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "atent_ext"]
    command = [*launcher, "eval", *map(str, setting), "--out", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: ") == done.stdout.count("2 of 5 chunks are done") == 1
    whole, parts = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "parts.json"))
    assert [result["flags"] for result in whole["results"]] == [result["flags"] for result in parts["results"]]
    assert (whole["processes"], parts["processes"]) == (1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "parts.json"}


@pytest.mark.integration
@pytest.mark.usefixtures("warm_processes")
def test_an_evaluation_that_is_killed_loses_at_most_one_chunk(run, tmp_path):
    kill_evaluation = scripts.module("stress/kill_evaluation")
    with pytest.raises(SystemExit) as end:  # it prints its record where it is BAD
        kill_evaluation.main(run[0], tmp_path / "kills.json", n=24, chunk=4, kills=2, protocol="quick")
    assert not end.value.code
    record = json.loads((tmp_path / "kills.json").read_text())
    assert (len(record["kills"]), record["good"], record["flags_same"]) == (2, True, [True])
    assert [(kill["chunks_gained"], kill["chunks_lost"]) for kill in record["kills"]] == [(1, 1), (2, 1)]
    assert all(kill["while_scoring"] and not kill["kept_and_repeated"] for kill in record["kills"])


def test_eval_of_bad_input(run, tmp_path):
    folder, _ = run
    weights = folder / "weights.safetensors"
    before = sorted(folder.iterdir())
    refused(atent("eval", folder, "--protocol", "autoatack"), "autoatack", "autoattack")
    refused(atent("eval", folder, "--n", 0), "n is 0")
    refused(atent("eval", folder, "--n", 361), "361", "360")
    refused(atent("eval", folder, "--eps", -1), "eps is -1")
    refused(atent("eval", folder, "--speed", "fast"), "fast", "channels-last")
    refused(atent("eval", folder, "--norm", "L7"), "L7", "Linf, L2")
    refused(atent("eval", folder, "--norm", "L2"), "norm is L2, but the known radius, 0.15, is for Linf; give --eps")
    refused(atent("eval", tmp_path), str(tmp_path), "recipe.yaml")
    refused(atent("eval", tmp_path / "nowhere"), "nowhere", "does not exist")
    refused(atent("eval", folder, "--model", "digits-cnn"), "--model")
    refused(atent("eval", folder, "--out", tmp_path), str(tmp_path), "JSON")
    refused(atent("eval", weights), "--model", "--dataset", "--eps")
    missing = tmp_path / "nothing.pt"
    refused(atent("eval", missing, "--model", "digits-cnn", "--dataset", "digits", "--eps", 0.1), str(missing))
    refused(atent("eval", weights, "--model", "digit-cnn", "--dataset", "digits", "--eps", 0.1), "digits-cnn")
    refused(atent("eval", weights, "--model", "small-cnn", "--dataset", "digits", "--eps", 0.1), "1x8x8")
    refused(atent("eval", weights, "--model", "resnet-20", "--dataset", "digits", "--eps", 0.1), "does not fit")
    assert sorted(folder.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-linf-atnt"], ["digits-linf-atnt", "digits-linf-atent"]),
        (["digits-linf-atent", "--set", "epoch=3"], ["epoch", "epochs"]),
        (["digits-linf-atent", "--set", "objective.step=3"], ["objective.step", "objective.steps"]),
        (["digits-linf-atent", "--set", "objective.eps=-1"], ["eps is -1"]),
        (["digits-linf-atent", "--set", "objective.steps=0"], ["steps is 0"]),
        (["digits-linf-atent", "--set", "model.name=digits"], ["digits-cnn"]),
        (["digits-linf-atent", "--set", "model.name=small-cnn"], ["small-cnn", "1x8x8"]),
        (["digits-linf-atent", "--set", "model.arguments.classes=5"], ["model.arguments.classes"]),
        (["digits-linf-atent", "--set", "objective.norm=L2"], ["objective.norm", "Linf"]),
        (["digits-linf-atent", "--set", "schedule.warmup=1"], ["schedule.warmup"]),
        (["mnist-linf-atent", "--data-root", "nowhere"], ["nowhere", "--download"]),
    ],
)
def test_train_of_bad_input(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(atent("train", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_is_one_line(tmp_path):
    done = atent("train", "digits-linf-sgd", "--set", "optimizer.lr=1e30", "--set", "epochs=2", "--out", tmp_path / "r")
    refused(done, "epoch 1", "step", "optimizer.lr")
    assert [path.name for path in (tmp_path / "r").iterdir() if path.name != ".lock"] == ["recipe.yaml"]


def test_a_process_refuses_bad_input_the_same_way():
    refused(shell("train", "digits-linf-atnt"), "digits-linf-atnt", "digits-linf-atent")


def test_an_unknown_option_is_refused_without_a_traceback():
    unknown = atent("train", "--fast")
    assert unknown.returncode == 2
    assert re.search("No such option:? '?--fast", unknown.stderr)  # versions of typer differ in the marks
    assert "Traceback" not in unknown.stderr


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("atent_ext.training.loop.fit", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    done = atent("train", "digits-linf-sgd", "--out", tmp_path / "run")
    assert done.returncode == 130
    assert done.stderr == "atent: train was interrupted; go on with the same command and --resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_quickstart_prints_the_table(tmp_path, monkeypatch):
    short = Protocol(name="short", description="", attacks=({"attack": "clean"}, {"attack": "fgsm"}))
    monkeypatch.setattr("atent_ext.experiments.quickstart.load_protocol", lambda name: short)
    tiny = ["--set", "epochs=1", "--set", "examples=128", "--set", "validation.count=50", "--n", 10]
    done = atent("quickstart", "--out", tmp_path / "q", *tiny)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│ digits-linf-")]
    assert len(rows) == 5
    assert "the first 10 of 360" in done.stdout
    assert (tmp_path / "q" / "adversaries.png").is_file()
    refused(atent("quickstart", "--out", tmp_path / "q", *tiny, "--seed", 1), "seed", "--overwrite")
    assert atent("quickstart", "--n", 361).returncode == 2
