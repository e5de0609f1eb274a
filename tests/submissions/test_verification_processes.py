"""Two processes verify one submission: they share the scores and nothing else. This very file is started, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from atent_ext.cli import app
from atent_ext.data import datasets
from atent_ext.evaluation import engine, scoring
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.figures import gallery
from atent_ext.models import weights
from atent_ext.submissions import cards, masking, sanity, verification
from atent_ext.submissions.cards import Sign, Submission
from atent_ext.submissions.folder import read

WATCHED = {
    "checks": (sanity, "check"),
    "signs": (masking, "signs"),
    "gallery": (gallery, "draw"),
    "chunks": (engine, "score"),
    "cards": (cards, "write_card"),
}


def write_submission(folder):
    network = masking.surrogate(datasets.load("digits").train, 10, seed=1)[1]
    weights.save_weights(network, folder / "model.safetensors")
    fields = {"name": "plain", "authors": "A. Author", "architecture": {"name": "digits-cnn"}, "dataset": "digits"}
    fields |= {"threat": {"norm": "Linf", "eps": 0.05}, "license": "MIT"}
    cards.write_submission(Submission.model_validate(fields), folder / "card.yaml")


def launched(*arguments, launcher=(forked.__file__,)):
    """Two processes of a module or file, on one thread each; after "--" nothing is torchrun's."""
    command = [sys.executable, *launcher, "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.integration
@pytest.mark.usefixtures("warm_processes")
def test_the_first_process_alone_looks_and_writes_and_all_return_its_card(tmp_path):
    write_submission(tmp_path / "sent")
    done = launched(
        "--", __file__, tmp_path, "verify", tmp_path / "sent", "--n", 12, "--chunk", 3, "--protocol", "quick"
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    once = {"checks": 1, "signs": 1, "gallery": 1, "cards": 1}
    assert first["calls"] == once | {"chunks": 2}
    assert second["calls"] == {"chunks": 2}
    card = cards.read_card(tmp_path / "sent.card.json")
    assert first["card"] == second["card"] == card.model_dump(mode="json")
    assert card.signs[0].evidence == "seen by process 0"
    assert card.report.processes == 2
    alone = scoring.score(verification._subject(*opened(tmp_path / "sent")), load_protocol("quick"), n=12, chunk=3)
    assert [one.flags for one in card.report.results] == [one.flags for one in alone.results]
    assert done.stdout.count("written: ") == done.stdout.count("worst case") == 1
    names = {"0.json", "1.json", "sent", "sent.card.json", "sent.card.json.report.json", "sent.card.png"}
    assert {path.name for path in tmp_path.iterdir()} == names


def opened(folder):
    images = datasets.load("digits")
    return read(folder), images


@pytest.mark.integration
def test_a_command_without_shared_work_is_refused_once(tmp_path):
    torchrun = ("-m", "torch.distributed.run")
    done = launched("-m", "--", "atent_ext", "board", "--out", tmp_path / "site", launcher=torchrun)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("atent: ")]
    assert said == [
        "atent: board works in one process, and 2 were started; start it without torchrun or accelerate launch"
    ]
    assert list(tmp_path.iterdir()) == []


# ---- what is started


def program(folder):
    """The command; what this process called, and the card that it got, are written into the folder."""
    rank, calls, got = os.environ["RANK"], {}, {}

    def watch(name, module, attribute):
        work = getattr(module, attribute)

        def watched(*arguments, **options):
            calls[name] = calls.get(name, 0) + 1
            return work(*arguments, **options)

        setattr(module, attribute, watched)

    def verify(*arguments, **options):
        got["card"] = whole(*arguments, **options)
        return got["card"]

    found = Sign(name="a sign", found=False, evidence=f"seen by process {rank}")
    masking.signs = lambda *_, **__: ((found,), {"n": 1, "eps": [0.0], "accuracy": {}})
    for name, place in WATCHED.items():
        watch(name, *place)
    whole, verification.verify = verification.verify, verify
    try:
        app.main()
    finally:
        told = {"calls": calls, "card": got["card"].model_dump(mode="json")}
        (folder / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    program(Path(sys.argv.pop(1)))
