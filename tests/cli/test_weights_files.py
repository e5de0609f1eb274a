"""One network saved in many ways: every command reads the same tensors from each, so that no figure differs."""

import importlib.util
import json

import pytest
import torch
import yaml
from commands import atent, refused
from problems import tiny_with_statistics
from saved_ways import WAYS, Way, expected
from strangers import submission

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.evaluation import certificates, scoring
from atent_ext.figures import gallery
from atent_ext.leaderboard import site
from atent_ext.models.wrappers import Normalised
from atent_ext.submissions import cards, masking
from atent_ext.training import recipes
from atent_ext.training.run_folder import initialise

OF = ["--model", "tiny-net", "--dataset", "digits"]
FEW = {"name": "few", "description": "", "attacks": [{"attack": "clean"}, {"attack": "pgd", "steps": 2}]}
EXPORTS = importlib.util.find_spec("robustbench") is not None


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """The networks that commands score or certify; signs of masking and pictures are left out."""

    def spied(original):
        def call(subject, *arguments, **options):
            networks.append(subject.model)
            return original(subject, *arguments, **options)

        return call

    networks = []
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:tiny_net")
    monkeypatch.setattr(scoring, "score", spied(scoring.score))
    monkeypatch.setattr(certificates, "certify", spied(certificates.certify))
    monkeypatch.setattr(masking, "signs", lambda *arguments, **options: ((), {}))
    monkeypatch.setattr(gallery, "draw", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(FEW))
    return networks


def run(*arguments):
    done = atent(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stated(way):
    if way.stated is None:
        return []
    return [
        "--normalisation",
        way.stated if way.stated == "none" else yaml.safe_dump(way.stated, default_flow_style=True),
    ]


def same(state, wanted):
    return state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", WAYS)
def test_every_command_reads_the_same_tensors_from_each_way(name, scored, tmp_path):
    way = WAYS[name]
    state, other = (tiny_with_statistics(seed).state_dict() for seed in (1, 2))
    wanted, normalised = expected(way, state), isinstance(way.stated, dict)
    file = tmp_path / way.file
    file.write_bytes(way.bytes(state, other))
    card = {"architecture": {"name": "tiny-net"}, "threat": {"norm": "Linf", "eps": 0.1}}
    card |= {} if way.stated is None else {"normalisation": way.stated}
    sent = submission(tmp_path / "sent", file.read_bytes(), way.file, **card)

    said = run("eval", file, *OF, *stated(way), "--eps", 0.1, "--protocol", "few.yaml", "--n", 20, "--out", "eval.json")
    run("verify", sent, "--protocol", "few.yaml", "--n", 20, "--out", "card.json")
    run("certify", file, *OF, *stated(way), "--sigma", 0.25, "--images", 1, "--n", 20, "--n0", 5, "--out", "c.json")
    assert len(scored) == 3
    for network in scored:
        assert isinstance(network, Normalised) == normalised
        assert same((network.network if normalised else network).state_dict(), wanted)
    report, written = json.loads((tmp_path / "eval.json").read_text()), json.loads((tmp_path / "card.json").read_text())
    assert report["content_sha256"] == written["report"]["content_sha256"]
    assert report["model"] == written["report"]["model"]
    for one, two in zip(report["results"], written["report"]["results"], strict=True):
        assert one["flags"] == two["flags"]
    assert report["weights_notes"] == written["weights"]["notes"]
    assert all(f"weights: {note}" in said for note in report["weights_notes"])

    if EXPORTS:
        run("export", file, *OF, *stated(way), "--eps", 0.1, "--out", "zoo", "--name", "mine")
        exported = torch.load(tmp_path / "zoo/digits/Linf/mine.pt", weights_only=True)
        assert same({key.removeprefix("network."): tensor for key, tensor in exported.items()}, wanted)

    recipe = recipes.load("digits-linf-sgd", ["model.name=tiny-net", f"init_from={file}"])
    network = tiny_with_statistics(3)
    if normalised:  # a recipe trains on images in [0, 1]
        with pytest.raises(BadInput) as error:
            initialise(network, recipe)
        assert error.value.field == "normalisation"
    else:
        initialise(network, recipe)
        assert same(network.state_dict(), wanted)


UNDECIDED = {
    "normalisation": (WAYS["behind a normalisation"], ["--normalisation", "none"], {"normalisation": "none"}),
    "weights_key": (
        Way(lambda state, other: {"last": dict(state), "best": dict(other)}),
        ["--weights-key", "last"],
        {"weights_key": "last"},
    ),
}


@pytest.mark.parametrize("field", UNDECIDED)
def test_every_command_refuses_what_nothing_decides_until_it_is_stated(field, scored, tmp_path):
    way, given, card = UNDECIDED[field]
    state, other = (tiny_with_statistics(seed).state_dict() for seed in (1, 2))
    file = tmp_path / "model.pt"
    file.write_bytes(way.bytes(state, other))
    card |= {"architecture": {"name": "tiny-net"}}
    sent = submission(tmp_path / "sent", file.read_bytes(), **card)
    asks = submission(tmp_path / "asks", file.read_bytes(), architecture=card["architecture"])
    recipe = ["model.name=tiny-net", f"init_from={file}"]
    commands = [
        ["eval", file, *OF, "--eps", 0.1, "--protocol", "few.yaml", "--n", 20, "--out", "eval.json"],
        ["certify", file, *OF, "--sigma", 0.25, "--images", 1, "--n", 20, "--n0", 5, "--out", "certify.json"],
        *([["export", file, *OF, "--eps", 0.1, "--out", "zoo"]] if EXPORTS else []),
    ]
    for command in commands:
        refused(atent(*command), f"--{field.replace('_', '-')}")
        run(*command, *given)
    refused(atent("verify", asks, "--out", "none.json"), f"{field} in card.yaml" if "key" in field else "in card.yaml")
    run("verify", sent, "--protocol", "few.yaml", "--n", 20, "--out", "card.json")
    with pytest.raises(BadInput) as error:
        initialise(tiny_with_statistics(3), recipes.load("digits-linf-sgd", recipe))
    assert error.value.field == field
    network = tiny_with_statistics(3)
    initialise(network, recipes.load("digits-linf-sgd", [*recipe, f"init_{field}={given[1]}"]))
    assert all(same(network.state_dict(), state) for network in (network, *scored))


def test_a_choice_stands_in_report_card_and_board(scored, tmp_path):
    state, other = (tiny_with_statistics(seed).state_dict() for seed in (1, 2))
    card = {"architecture": {"name": "tiny-net"}, "normalisation": "none", "name": "averaged"}
    sent = submission(tmp_path / "sent", WAYS["SWA"].bytes(state, other), **card)
    said = run("verify", sent, "--protocol", "few.yaml", "--n", 20, "--out", "card.json")
    note = "the weights under 'swa_state_dict' are read; they are averaged, which is what is reported; "
    note += "not read: 'state_dict'"
    assert f"weights: {note}" in said
    written = cards.read_card(tmp_path / "card.json")
    assert written.weights["key"] == "swa_state_dict"
    assert written.weights["notes"][0] == note
    assert written.report.model == "tiny-net, weights under 'swa_state_dict'"
    cards.write_card(written, tmp_path / "cards" / written.place)
    site.build(tmp_path / "cards", tmp_path / "board")
    (page,) = list((tmp_path / "board").rglob("*averaged*.html"))
    assert "they are averaged, which is what is reported" in page.read_text()
    assert "none, as the card states" in page.read_text()


def test_certificates_of_other_weights_in_the_file_are_not_continued(scored, tmp_path):
    state, other = (tiny_with_statistics(seed).state_dict() for seed in (1, 2))
    file = tmp_path / "model.pt"
    file.write_bytes(WAYS["SWA"].bytes(state, other))
    command = ["certify", file, *OF, "--sigma", 0.25, "--images", 1, "--n", 20, "--n0", 5, "--out", "certify.json"]
    run(*command)
    refused(atent(*command, "--weights-key", "state_dict"), "holds another model")


def test_options_of_weights_files_are_refused_elsewhere(scored, tmp_path):
    (tmp_path / "run").mkdir()
    for subject in ("zoo:mnist-linf-atent", "run", "robustbench:X"):
        for option, value in (("--weights-key", "ema"), ("--normalisation", "none")):
            refused(atent("eval", subject, option, value), option)
    refused(atent("export", "run", "--out", "zoo", "--model", "tiny-net"), "--model")
    refused(atent("eval", "w.pt", "--normalisation", "{mean: [0.5]}"), "normalisation", "std")
