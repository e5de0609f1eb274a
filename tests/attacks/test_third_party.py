"""Another package brings an attack in one file and a protocol; what they measured outlives the package."""

import sys
from textwrap import dedent

import pytest
import torch
from commands import atent, refused
from problems import attack_spec

from atent_ext.attacks.accuracy import predict
from atent_ext.attacks.spec import Setting, parse
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation import run
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.leaderboard import ranking, site
from atent_ext.models import weights
from atent_ext.submissions import cards, masking, verification

N, EPS = 20, 0.3
ATTACK = """
    from typing import Literal

    from atent_ext.attacks import AttackSpec, Outcome
    from atent_ext.attacks.accuracy import flags_under
    from atent_ext.core.norms import norm


    class Brighter(AttackSpec):
        attack: Literal["brighter"] = "brighter"
        share: float = 1.0

        def run(self, model, split, setting):
            eps = setting.threat.eps

            def brighter(model, x, y):
                return (x + self.share * eps).clamp(0, 1)

            flags = flags_under(brighter, model, split, norm(setting.threat.norm), eps, setting.batch_size)
            return Outcome("attack", f"Brighter-{self.share:g}", {"share": self.share}, flags)

        def for_random_network(self):
            return self.model_copy(update={"share": 0.5})
"""
PROTOCOL = """
    name: theirs
    description: Clean accuracy, and what is left of it in brighter images.
    attacks:
      - {attack: clean}
      - {attack: brighter, share: 1.0}
      - {attack: fgsm}
"""
ENTRIES = """
    [atent_ext.attacks]
    brighter = theirs.attack:Brighter

    [atent_ext.protocols]
    theirs = theirs.protocols
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text).lstrip(), encoding="utf-8")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder that holds the package `theirs` as an installation leaves it."""
    folder = tmp_path_factory.mktemp("site")
    write(folder / "theirs" / "__init__.py", "")
    write(folder / "theirs" / "attack.py", ATTACK)
    write(folder / "theirs" / "protocols" / "theirs.yaml", PROTOCOL)
    write(folder / "theirs-3.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 3.0\n")
    write(folder / "theirs-3.0.dist-info" / "entry_points.txt", ENTRIES)
    return folder


@pytest.fixture
def installed(package, monkeypatch):
    """The package, for one test."""
    monkeypatch.syspath_prepend(package)
    yield package
    forget()


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def network():
    """A network that is right on most digits, and wrong on some that are brighter."""
    return masking.surrogate(datasets.load("digits").train, 10, seed=1)[1]


@pytest.fixture(scope="module")
def folder(network, package, tmp_path_factory):
    """What `atent eval` and `atent verify` wrote with the package, which is uninstalled again."""
    home = tmp_path_factory.mktemp("home")
    weights.save_weights(network, home / "sent" / "model.safetensors")
    given = {"architecture": {"name": "digits-cnn"}, "threat": {"norm": "Linf", "eps": EPS}}
    about = {"name": "of-theirs", "authors": "A", "dataset": "digits", "license": "MIT", **given}
    cards.write_submission(cards.Submission.model_validate(about), home / "sent" / "card.yaml")
    named = ["--model", "digits-cnn", "--dataset", "digits", "--norm", "Linf", "--eps", EPS]
    asked = ["--protocol", "theirs", "--n", N]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        patch.setattr(verification.masking, "signs", lambda *_, **__: ((), {}))  # they take longer than all the rest
        evaluated = atent("eval", home / "sent" / "model.safetensors", *named, *asked, "--out", home / "report.json")
        verified = atent("verify", home / "sent", *asked, "--out", home / "card.json")
    forget()
    for done in (evaluated, verified):
        assert done.returncode == 0, done.stderr
        assert "Brighter-1" in done.stdout
    return home


def known(network):
    """Right, and right in brighter images: (N,) each."""
    test = datasets.load("digits").test.take(N)
    clean, brighter = (
        predict(network, x).argmax(1) == test.labels for x in (test.images, (test.images + EPS).clamp(0, 1))
    )
    return clean, clean & brighter


# ---- installed


def test_it_is_an_attack_among_the_others(installed):
    assert registry.packages("attack") == {"brighter": "theirs"}
    spec = attack_spec("brighter", share=0.25)
    assert spec.model_dump() == {"attack": "brighter", "share": 0.25}
    protocol = load_protocol("theirs")
    assert [one.attack for one in protocol.attacks] == ["clean", "brighter", "fgsm"]
    assert Protocol.model_validate(protocol.model_dump(mode="json")) == protocol
    fitting = verification.fitting(protocol, True)
    assert [one.model_dump() for one in fitting.attacks][1] == {"attack": "brighter", "share": 0.5}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"attack": "brigther"}, "did you mean 'brighter'"),
        ({"attack": "brighter", "shar": 1}, "did you mean 'share'"),
        ({"attack": "brighter", "share": "x"}, "attack 'brighter': share is 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_as_ours_is(installed, raw, words):
    with pytest.raises(BadInput, match=words):
        parse(raw)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("flags[:-1]", r"returned flags \(19,\) of torch.bool; \(20,\) bool is needed"),
        ("flags.float()", r"returned flags \(20,\) of torch.float32"),
        ("flags[:, None]", r"returned flags \(20, 1\)"),
    ],
)
def test_flags_that_are_not_one_an_image_are_refused(package, network, tmp_path, monkeypatch, returned, said):
    write(tmp_path / "theirs" / "__init__.py", "")
    write(tmp_path / "theirs" / "attack.py", ATTACK.replace("self.share}, flags)", f"self.share}}, {returned})"))
    monkeypatch.syspath_prepend(package)
    monkeypatch.syspath_prepend(tmp_path)
    protocol = Protocol(name="x", description="", attacks=({"attack": "brighter"},))
    with pytest.raises(BadInput, match=f"attack 'brighter' {said}") as error:
        run.run_protocol(network, datasets.load("digits").test.take(N), protocol, Setting(Threat(norm="Linf", eps=EPS)))
    assert (error.value.code, error.value.field) == ("bad-shape", "attack")
    forget()


def test_a_name_that_is_ours_is_taken(tmp_path, monkeypatch):
    write(tmp_path / "rival-3.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: rival\nVersion: 3.0\n")
    write(tmp_path / "rival-3.0.dist-info" / "entry_points.txt", "[atent_ext.attacks]\npgd = rival:PGD\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"'rival' .*registers the attack 'pgd'.*uninstall one of them"):
        attack_spec("pgd")
    assert attack_spec("fgsm").attack == "fgsm"  # who does not ask for it is not disturbed


# ---- uninstalled again


def test_the_report_is_of_their_attack_and_outlives_it(folder, network):
    clean, brighter = known(network)
    assert 0 < int(brighter.sum()) < int(clean.sum())
    report = Report.load(folder / "report.json")
    assert [one.attack for one in report.results] == ["clean", "Brighter-1", "FGSM", "worst case"]
    assert torch.equal(report.flags("clean"), clean)
    assert torch.equal(report.flags("Brighter-1"), brighter)
    assert torch.equal(report.flags("worst_case"), brighter & report.flags("FGSM"))
    assert report.result("Brighter-1").settings == {"share": 1.0}
    assert report.worst.over == "clean, Brighter-1, FGSM"
    assert "Brighter-1" in str(report)


def test_the_card_is_read_listed_and_ranked(folder, tmp_path):
    card, report = cards.read_card(folder / "card.json"), Report.load(folder / "report.json")
    assert [(one.attack, one.flags) for one in card.report.results] == [
        (one.attack, one.flags) for one in report.results
    ]
    cards.write_card(card, tmp_path / "cards" / card.place)
    (entry,) = ranking.read(tmp_path / "cards")[0].entries
    assert (entry.rank, entry.worst.flags) == (1, report.worst.flags)
    assert entry.strongest.accuracy == min(report.accuracy("FGSM"), report.accuracy("Brighter-1"))
    assert "Brighter-1" in site.build(tmp_path / "cards", tmp_path / "site")[1].read_text(encoding="utf-8")


def test_what_is_gone_is_not_run(folder):
    with pytest.raises(BadInput) as error:
        attack_spec("brighter")
    assert error.value.code == "unknown-name"
    named = ["--model", "digits-cnn", "--dataset", "digits", "--norm", "Linf", "--eps", EPS]
    refused(
        atent("eval", folder / "sent" / "model.safetensors", *named, "--protocol", "theirs"),
        "unknown protocol 'theirs'",
    )
