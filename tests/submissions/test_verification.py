import hashlib
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import Wrapped
from reports import report, result

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.evaluation import engine, scoring
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.leaderboard import ranking
from atent_ext.models import weights, wrappers
from atent_ext.subjects import weights_file
from atent_ext.submissions import cards, claims, masking, sanity, verification
from atent_ext.submissions import folder as submission_folder
from atent_ext.submissions.cards import Claim, Submission

CHEAP = Protocol(
    name="cheap", description="", attacks=[{"attack": "clean"}, {"attack": "fgsm"}, {"attack": "pgd", "steps": 5}]
)
N = 60
SIGNS = 6


def submission(**given):
    fields = {
        "name": "plain",
        "authors": "A. Author",
        "architecture": {"name": "digits-cnn"},
        "dataset": "digits",
        "threat": {"norm": "Linf", "eps": 0.05},
        "license": "MIT",
    }
    return Submission.model_validate(fields | given)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    path = tmp_path_factory.mktemp("submission")
    weights.save_weights(masking.surrogate(digits.train, 10, seed=1)[1], path / "model.safetensors")
    cards.write_submission(submission(), path / "card.yaml")
    return path


@pytest.fixture
def opened(folder):
    return submission_folder.read(folder)


def flags(report):
    return [(one.attack, one.flags) for one in report.results]


def verify(opened, **options):
    return verification.verify(opened, **{"n": N, "protocol": CHEAP} | options)


@pytest.fixture(scope="module")
def card(folder):
    return verify(submission_folder.read(folder), command="atent verify plain", seed=3)


@pytest.fixture
def without_signs(monkeypatch):
    monkeypatch.setattr(masking, "signs", lambda *_, **__: ((), {}))


def claiming(opened, *claims):
    claims = [{"what": what, "percent": percent} for what, percent in claims]
    return replace(opened, submission=opened.submission.model_copy(update={"claims": tuple(map(claim, claims))}))


def claim(given):
    return Claim.model_validate(given)


def answering(opened, answer):
    return replace(opened, network=Wrapped(opened.network, answer))


# ---- from folder to card


def test_a_folder_becomes_a_card(card, folder, tmp_path):
    content = (folder / "model.safetensors").read_bytes()
    assert card.submission == submission()
    assert card.weights["file"] == "model.safetensors"
    assert card.weights["sha256"] == card.report.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert (card.weights["bytes"], card.weights["parameters"]) == (len(content), 57110)
    assert [one.name for one in card.checks if one.passed] == list(sanity.NAMES)
    assert len(card.signs) == SIGNS
    assert not any(sign.found for sign in card.signs)
    assert card.curve["eps"] == masking.radii(card.submission.threat, (1, 8, 8))
    assert (card.command, card.report.seed, card.report.data) == ("atent verify plain", 3, "digits")
    assert card.verdicts == ()
    assert {"atent-ext", "torch", "pyautoattack"} <= card.report.versions.keys()
    cards.write_card(card, tmp_path / "card.json")
    assert cards.read_card(tmp_path / "card.json") == card
    entry = ranking.measured(card, tmp_path / "card.json")  # what the leaderboard reads of it
    assert set(entry.curve.accuracy) == {"PGD-40", "random noise"}
    assert entry.worst.kind == "worst_case"


def test_the_scores_are_those_of_an_evaluation(card, opened, digits, folder):
    assert [one.attack for one in card.report.results] == ["clean", "FGSM", "PGD-5", "worst case"]
    assert torch.equal(card.report.flags("clean"), clean_flags(opened.network, digits.test.take(N)))
    subject = weights_file.from_weights(folder / "model.safetensors", "digits-cnn", "digits", opened.submission.threat)
    alone = scoring.score(subject, CHEAP, n=N, seed=3)
    assert flags(card.report) == flags(alone)


def test_the_hash_of_the_data_is_of_the_images_scored(card, opened, digits, without_signs):
    test = digits.test.take(N)
    expected = hashlib.sha256(test.images.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest()
    assert card.report.data_sha256 == expected
    assert verify(opened, n=N - 1).report.data_sha256 != expected


def test_the_seconds_are_those_of_all_parts(card):
    scored = sum(one.seconds for one in card.report.results if one.kind != "worst_case")
    assert card.seconds > scored


def test_the_network_comes_back_as_found(opened):
    torch.manual_seed(3)
    before = [value.clone() for value in opened.network.state_dict().values()]
    state = torch.get_rng_state()
    verify(opened, n=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, opened.network.state_dict().values(), before))
    assert not any(module.training for module in opened.network.modules())


# ---- what cannot be scored, and what is random


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda net, x: net(x.detach()), "finite gradient"),
        (lambda net, x: torch.nan * net(x), "finite logits"),
        (lambda net, x: net(x)[:, :4], "shape"),
    ],
)
def test_what_cannot_be_scored_is_not(opened, monkeypatch, answer, name):
    monkeypatch.setattr(scoring, "score", lambda *_, **__: pytest.fail("it was scored"))
    card = verify(claiming(answering(opened, answer), ("clean", 99)))
    assert [one.name for one in sanity.fatal(card.checks)] == [name]
    assert (card.report, card.signs, card.verdicts, card.curve) == (None, (), (), {})
    assert card.weights["sha256"] == opened.sha256


def test_a_card_of_a_network_that_cannot_be_scored_is_not_one_of_one_that_can(opened, card):
    broken = answering(opened, lambda net, x: torch.nan * net(x))
    unscored = verify(broken)
    assert verify(broken, card=unscored) is unscored
    with pytest.raises(BadInput) as error:
        verify(opened, card=unscored)
    assert (error.value.code, error.value.field) == ("other-content", "fatal.0")
    assert "the card of plain was made with fatal.0 = 'finite logits', not None; give --overwrite" in str(error.value)
    with pytest.raises(BadInput, match=r"fatal\.0 = None, not 'finite logits'"):
        verify(broken, card=card, seed=3)


def test_a_card_of_this_setting_is_returned_and_any_other_refused(opened, card, tmp_path, monkeypatch):
    cards.write_card(card, tmp_path / "card.json")
    held = cards.read_card(tmp_path / "card.json")
    monkeypatch.setattr(masking, "signs", lambda *_, **__: pytest.fail("signs were looked for"))
    assert verify(opened, card=held, seed=3, command="other") is held
    for change, field in (
        ({"seed": 4}, "seed"),
        ({"n": N - 1}, "n"),
        ({"chunk": 7}, "chunk"),
        ({"protocol": CHEAP.model_copy(update={"attacks": CHEAP.attacks[:2]})}, "protocol.attacks.2.attack"),
    ):
        with pytest.raises(BadInput) as error:
            verify(opened, card=held, **{"seed": 3} | change)
        assert (error.value.code, error.value.field) == ("other-content", field)
    other = replace(opened, sha256="0" * 64)
    with pytest.raises(BadInput) as error:
        verify(other, card=held, seed=3)
    assert error.value.field == "weights_sha256"


def test_signs_reach_the_card(opened):
    card = verify(answering(opened, lambda net, x: net((16 * x).round() / 16)), n=20)
    assert [one.name for one in card.checks if one.passed is False] == ["nonzero gradient"]
    assert "zero gradients" in [sign.name for sign in card.signs if sign.found]
    assert card.report.results


@pytest.mark.parametrize("declared", [False, True])
def test_a_random_network_is_scored_by_rand(opened, monkeypatch, declared, without_signs):
    asked = []
    score = scoring.score

    def cheaply(subject, protocol, **options):
        asked.append(protocol)
        return score(subject, CHEAP, **options)

    monkeypatch.setattr(scoring, "score", cheaply)
    noisy = answering(opened, lambda net, x: net(F.dropout(x, 0.2, training=True)))
    stated = replace(noisy, submission=noisy.submission.model_copy(update={"random": declared}))
    card = verify(stated, protocol="verify", n=20)
    assert asked[0].attacks[-1].version == "rand"
    assert next(one.passed for one in card.checks if one.name == "determinism") is declared


def test_what_changes_for_a_random_network():
    usual = load_protocol("verify")
    other = verification.fitting(usual, True)
    assert verification.fitting(usual, False) == usual
    assert [spec.attack for spec in usual.attacks] == ["clean", "pgd", "atent", "autoattack"]
    assert [spec.keep for spec in usual.attacks[1:3]] == ["success", "success"]
    assert [spec.keep for spec in other.attacks[1:3]] == ["last", "last"]
    assert (usual.attacks[-1].version, other.attacks[-1].version) == ("standard", "rand")
    plain = {"keep", "version"}
    assert [spec.model_dump(exclude=plain) for spec in other.attacks] == [
        spec.model_dump(exclude=plain) for spec in usual.attacks
    ]


def test_the_protocol_has_what_a_card_needs():
    attacks = {spec.attack: spec for spec in load_protocol("verify").attacks}
    assert list(attacks) == ["clean", "pgd", "atent", "autoattack"]
    assert attacks["atent"].project == "every"
    assert (attacks["pgd"].restarts, attacks["atent"].restarts) == (3, 3)


# ---- claims


def test_claims_meet_the_measurement(opened, digits, without_signs):
    clean = int(clean_flags(opened.network, digits.test.take(N)).sum())
    asked = claiming(opened, ("clean", round(100 * clean / N, 2)), ("robust", 100), ("clean", 0), ("robust", 0))
    found = verify(asked)
    right, lost, easy = found.verdicts  # without AutoAttack, 0 % robust is neither confirmed nor understated
    measured = 100 * int(found.report.flags("worst_case").sum()) / N
    assert [one.verdict for one in found.verdicts] == ["confirmed", "overstated", "understated"]
    assert (right.attack, lost.attack) == ("clean", "worst case over clean, FGSM, PGD-5")
    assert right.points == pytest.approx(0, abs=0.006)
    assert (lost.points, easy.points) == pytest.approx((100 - measured, -100 * clean / N), abs=1e-4)
    assert lost.measured == pytest.approx(measured, abs=1e-4)
    assert 0 < measured < 100


@pytest.mark.parametrize(
    ("percent", "points", "verdict"),
    # 90 of 100: Wilson's interval is (0.90 + 1.96^2 / 200 -+ 1.96 sqrt(0.0009 + 1.96^2 / 40000)) / (1 + 1.96^2 / 100).
    [(90, 0, "confirmed"), (94, 4, "confirmed"), (83, -7, "confirmed"), (95, 5, "overstated"), (82, -8, "understated")],
)
def test_a_claim_is_confirmed_inside_the_interval(percent, points, verdict):
    z = 1.959964
    half = z * (0.0009 + z**2 / 40000) ** 0.5
    low, high = ((0.9 + z**2 / 200 + sign * half) / (1 + z**2 / 100) for sign in (-1, 1))
    measured = report(result("clean", 0.9, 100, interval95_wilson=(low, high)))
    (found,) = claims.verdicts([claim({"what": "clean", "percent": percent})], measured)
    assert (found.points, found.verdict) == (points, verdict)
    assert found.interval == pytest.approx((82.56, 94.48), abs=0.01)


def test_no_verdict_on_what_was_not_measured():
    clean, robust = report(result("clean", 1.0)), report(result("PGD-20", 0.5))
    assert claims.verdicts([claim({"what": "robust", "percent": 50})], clean) == ()
    assert claims.verdicts([claim({"what": "clean", "percent": 50})], robust) == ()
    assert claims.verdicts([], clean) == ()


def around(attack, accuracy):
    return result(attack, accuracy, interval95_wilson=(accuracy - 0.1, accuracy + 0.1))


@pytest.mark.parametrize(
    ("percent", "attack", "kinds"),
    [
        (50, "AutoAttack", ["confirmed"]),
        (30, "AutoAttack", ["understated"]),
        (70, "AutoAttack", ["overstated"]),
        (50, "PGD-20", []),
        (30, "PGD-20", []),
        (70, "PGD-20", ["overstated"]),
    ],
)
def test_an_upper_bound_can_only_refute(percent, attack, kinds):
    measured = report(around("clean", 0.8), around(attack, 0.5), around("worst case", 0.5))
    found = claims.verdicts([claim({"what": "robust", "percent": percent})], measured)
    assert [one.verdict for one in found] == kinds


@pytest.mark.parametrize(("random", "attack", "points"), [(False, "worst case", 30), (True, "AutoAttack", 20)])
def test_a_random_network_is_judged_by_the_strongest_single_attack(random, attack, points):
    results = [around("clean", 0.3), around("PGD-5", 0.6), around("AutoAttack", 0.5), around("worst case", 0.4)]
    (found,) = claims.verdicts([claim({"what": "robust", "percent": 70})], report(*results), random)
    assert (found.attack, found.points) == (attack, points)


# ---- until the claims are decided


def test_scoring_stops_when_the_claims_are_decided_and_goes_on_from_there(opened, without_signs, tmp_path, monkeypatch):
    scored, original = [], engine.score
    monkeypatch.setattr(engine, "score", lambda *given: (scored.append(given[2].start), original(*given)))
    masked = claiming(opened, ("clean", 20), ("robust", 99.9))
    options = {"n": None, "out": tmp_path / "report.json", "tolerance": 1.0, "chunk": 20}
    card = verify(masked, **options)
    assert card.report.drawn.ended == "each claim is refuted, or confirmed within 1 points"
    assert card.report.n < 100 < card.report.total == 360
    assert [one.verdict for one in card.verdicts] == ["understated", "overstated"]
    assert verify(masked, **options, card=card) is card
    others = claiming(opened, ("clean", round(100 * card.report.accuracy("clean"), 2)))
    with pytest.raises(BadInput) as error:
        verify(others, **options, card=card)
    assert error.value.field == "submission.claims.0.percent"
    further = verify(others, **options)  # its report is of the same images and settings, and not enough
    assert further.report.n > card.report.n
    assert scored == sorted(set(scored))
    assert further.report.worst.flags.startswith(card.report.worst.flags)
    with pytest.raises(BadInput) as error:
        verify(masked, card=card)
    assert (error.value.code, error.value.field) == ("other-content", "n")


def test_a_larger_tolerance_decides_what_was_scored_already(opened, without_signs, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    near = verify(claiming(opened, ("clean", 50)), n=20, tolerance=0.1, chunk=20, out=out)
    low = 100 * near.report.accuracy("clean")
    one = claiming(opened, ("clean", round(low, 2)))
    card = verify(one, n=20, tolerance=0.1, chunk=20, out=out)
    assert (card.verdicts, card.report.drawn.ended) == ((), "n is 20")
    monkeypatch.setattr(engine, "score", lambda *given: pytest.fail("it was scored again"))
    wide = {"n": 20, "tolerance": 100.0, "chunk": 20, "out": out}
    for again in (verify(one, **wide), verify(one, **wide, card=card)):
        assert [verdict.verdict for verdict in again.verdicts] == ["confirmed"]
        assert again.report.drawn.tolerance == 100
        assert again.report.worst == card.report.worst
        assert verify(one, **wide, card=again) is again


# ---- data under another name


@pytest.fixture
def lossless(digits, tmp_path):
    path = tmp_path / "secret" / "sample.npz"
    path.parent.mkdir()
    arrays = {}
    for name, split in (("train", digits.train), ("test", digits.test)):
        arrays[f"x_{name}"] = (split.images * 255).round().to(torch.uint8).numpy()
        arrays[f"y_{name}"] = split.labels.numpy()
    np.savez(path, **arrays)
    return path


def test_a_data_set_can_be_loaded_under_another_name(opened, lossless, without_signs):
    card = verify(opened, dataset=f"npz:{lossless}", n=20)
    assert card.submission.dataset == "digits"
    assert card.report.data == "digits (sample.npz)"
    assert "arrays sample.npz, 1437 training and 360 test images" in card.report.data_note
    assert "secret" not in card.model_dump_json()


def test_arrays_for_tests_alone_that_lack_classes_have_those_of_the_card(opened, digits, tmp_path):
    few = (digits.test.labels < 3).nonzero().flatten()[:6]
    np.savez(tmp_path / "few.npz", x_test=digits.test.images[few].numpy(), y_test=digits.test.labels[few].numpy())
    drawn = []
    source = f"npz:{tmp_path}/few.npz"
    card = verify(opened, dataset=source, n=6, draw=lambda *drawing: drawn.append(drawing))
    assert drawn[0][2] == tuple("0123456789")  # a name for each prediction
    found = {sign.name: (sign.found, sign.evidence) for sign in card.signs}
    assert found["transfer beats white box"] == (None, "there are no training images")


def test_what_cannot_be_had_is_refused(opened):
    with pytest.raises(BadInput, match="only 360 examples"):
        verify(opened, n=361)
    with pytest.raises(BadInput, match="did you mean 'verify'"):
        verify(opened, protocol="verfy")
    with pytest.raises(BadInput, match="unknown data set"):
        verify(opened, dataset="digit")


# ---- going on after a kill


def test_scores_go_on_after_a_kill(opened, tmp_path, without_signs):
    out = tmp_path / "scores.json"

    def kill(standing):
        if standing.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(opened, out=out, chunk=20, progress=kill)
    assert len(list((tmp_path / "scores.json.chunks").glob("00*.json"))) == 2
    standings = []
    card = verify(opened, out=out, chunk=20, progress=standings.append)
    assert standings[0].done == 2
    undisturbed = verify(opened, chunk=20)
    assert flags(card.report) == flags(undisturbed.report)
    assert card.checks == undisturbed.checks
    assert Report.load(out) == card.report


def test_a_journal_of_another_normalisation_is_refused(opened, tmp_path, without_signs):
    out = tmp_path / "scores.json"

    def kill(standing):
        if standing.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(opened, out=out, chunk=20, progress=kill)
    scale = submission(normalisation={"mean": [0.5], "std": [0.5]})
    other = replace(opened, submission=scale, network=wrappers.Normalised(opened.network, [0.5], [0.5]).eval())
    with pytest.raises(BadInput, match="normalised by mean"):
        verify(other, out=out, chunk=20)


# ---- the commit


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "_ROOT", tmp_path)
    assert verification._commit() == ""
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert verification._commit() == head
    (tmp_path / "file").write_text("two")
    assert verification._commit() == f"{head}-dirty"


def test_no_commit_of_a_repository_around_an_installed_package(tmp_path, monkeypatch):
    git(tmp_path, "init")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(verification, "_ROOT", inside)
    assert verification._commit() == ""


def test_a_network_with_signs_of_masking_is_attacked_by_annealed_atent_besides(opened):
    masked = answering(opened, lambda network, x: 1e5 * network(x))
    card = verify(masked, n=15)
    assert any(sign.found for sign in card.signs)
    *_, pgd, annealed, worst = card.report.results
    assert (annealed.settings["schedule"], annealed.settings["restarts"]) == ("cosine", 9)
    assert annealed.correct < pgd.correct
    assert worst.correct <= annealed.correct
    assert verify(masked, n=15, card=card) is card
    assert verification.adapted(CHEAP, [sign for sign in card.signs if not sign.found]) is CHEAP
