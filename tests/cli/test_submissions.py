"""`atent submission new`, `verify`, `board`, `submit` and `registry check`, run as a user runs them."""

import json
import shutil

import pytest
import safetensors.torch
import yaml
from commands import TINY, atent, refused

from atent_ext.leaderboard import check, ranking
from atent_ext.submissions import cards

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run, its submission, and the card that `atent verify` wrote of it."""
    folder = tmp_path_factory.mktemp("registry")
    new = ("submission", "new", folder / "run", "--out", folder / "sent", "--authors", "A. Author", "--license", "MIT")
    verify = ("verify", folder / "sent", "--n", 30, "--protocol", "quick", "--seed", 2)
    for command in (("train", "digits-linf-atent", *TINY, "--out", folder / "run"), new, verify):
        done = atent(*command)
        assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout, encoding="utf-8")
    return folder


def test_a_run_becomes_a_card_and_its_gallery(home):
    card = cards.read_card(home / "sent.card.json")
    assert card.submission.name == "digits-linf-atent"
    assert [one.n for one in card.report.results] == [30] * 4
    assert card.report.seed == 2
    assert card.command == "atent verify sent --n 30 --protocol quick --seed 2"  # no folder of this machine
    assert (home / "sent.card.png").read_bytes().startswith(PNG)
    said = (home / "said").read_text(encoding="utf-8")
    assert "worst case" in said
    assert "sent.card.json and sent.card.png; the card's place is registry/cards/digits/Linf-0.15" in said
    names = {path.name for path in home.iterdir()}
    assert names == {"run", "sent", "sent.card.json", "sent.card.json.report.json", "sent.card.png", "said"}


def test_a_finished_card_is_shown_and_another_one_stays(home, tmp_path, monkeypatch):
    for name in ("sent.card.json", "sent.card.json.report.json", "sent.card.png"):
        shutil.copy(home / name, tmp_path / name)
    shutil.copytree(home / "sent", tmp_path / "sent")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    command = ("verify", tmp_path / "sent", "--n", 30, "--protocol", "quick", "--seed", 2)
    with monkeypatch.context() as patch:
        patch.setattr("atent_ext.submissions.masking.signs", lambda *_, **__: pytest.fail("it was measured again"))
        again = atent(*command)
        assert again.returncode == 0, again.stderr
        refused(
            atent(*command, "--speed", "plain"), "the card of digits-linf-atent was made with speed = ", "--overwrite"
        )
        refused(atent(*command[:-1], 3), "seed = 2, not 3", "--overwrite")
        card = yaml.safe_load((tmp_path / "sent" / "card.yaml").read_text(encoding="utf-8"))
        (tmp_path / "sent" / "card.yaml").write_text(yaml.safe_dump(card | {"license": "BSD"}), encoding="utf-8")
        refused(atent(*command), "submission.license = 'MIT', not 'BSD'")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
        (tmp_path / "sent.card.json").unlink()
        refused(atent(*command[:-1], 3), "sent.card.json.report.json was made with seed = 2, not 3")  # before the signs
        patch.setattr("atent_ext.submissions.masking.signs", lambda *_, **__: ((), {}))
        patch.setattr("atent_ext.evaluation.engine.score", lambda *_: pytest.fail("it was scored again"))
        done = atent(*command)  # the words changed: the scores are those that lie beside it
        assert done.returncode == 0, done.stderr
    said = (home / "said").read_text(encoding="utf-8")
    assert "written earlier, and nothing was measured (--overwrite measures anew): " in again.stdout
    assert again.stdout.partition("written")[0] == said.partition("written")[0]
    new, old = (cards.read_card(folder / "sent.card.json") for folder in (tmp_path, home))
    assert new.submission.license == "BSD"
    assert new.report == old.report
    (tmp_path / "sent.card.json").write_text("mine", encoding="utf-8")
    refused(atent(*command), "there is no room for the card", "is not a card in JSON", "--overwrite")
    assert atent(*command[:3], 2, *command[4:], "--overwrite").returncode == 0
    assert cards.read_card(tmp_path / "sent.card.json").report.n == 2


def test_the_card_is_a_row_and_a_page_of_the_board(home, tmp_path):
    card = cards.read_card(home / "sent.card.json")
    place = tmp_path / "registry" / "cards" / card.place
    place.parent.mkdir(parents=True)
    shutil.copy(home / "sent.card.json", place)
    shutil.copy(home / "sent.card.png", place.with_suffix(".png"))
    done = atent("board", "--cards", tmp_path / "registry" / "cards", "--out", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "site" / "models").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in text
    assert "PGD-40" in text  # of the curve
    assert "random noise" in text
    assert page.name in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert check.check(tmp_path / "registry") == []
    done = atent("registry", "check", tmp_path / "registry")
    assert (done.returncode, "in order" in done.stdout) == (0, True)


def test_a_changed_card_fails_the_check_with_exit_code_1(home, tmp_path):
    content = json.loads((home / "sent.card.json").read_text(encoding="utf-8"))
    content["report"]["results"][0]["correct"] -= 1
    place = tmp_path / "cards" / cards.read_card(home / "sent.card.json").place
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(content), encoding="utf-8")
    done = atent("registry", "check", tmp_path)
    assert done.returncode == 1
    assert "flags are 1" in done.stdout


def test_the_board_without_a_folder_is_of_the_cards_that_the_package_brings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = atent("board", "--out", "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    refused(atent("board", "--out", "other", "--cards", "nothing"), "there are no cards in nothing", "--cards")


def test_a_card_among_the_cards_is_refused_before_anything_is_scored(home, tmp_path):
    out = tmp_path / "registry" / "cards" / "mine.json"
    refused(atent("verify", home / "sent", "--out", out), "mine.json is in the registry's folder of cards")
    assert not out.parent.exists()


def test_claims_are_judged_in_words(home, tmp_path):
    sent = tmp_path / "sent"
    shutil.copytree(home / "sent", sent)
    card = yaml.safe_load((sent / "card.yaml").read_text(encoding="utf-8"))
    card["claims"] = [{"what": "robust", "percent": percent} for percent in (100, 0)]
    (sent / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    done = atent("verify", sent, "--n", 30, "--protocol", "quick")
    assert done.returncode == 0, done.stderr
    assert "claim of 100 % (robust): overstated; measured" in done.stdout
    assert "claim of 0 % (robust): not decided; only with AutoAttack can it be confirmed" in done.stdout
    entry = ranking.measured(cards.read_card(tmp_path / "sent.card.json"), sent)
    assert {"claim overstated by", "only 30 images", "no AutoAttack"} <= {
        badge.text.rpartition(" by ")[0] + " by" if " by " in badge.text else badge.text for badge in entry.badges
    }


def test_the_folder_may_be_the_current_one(home, tmp_path, monkeypatch):
    shutil.copytree(home / "sent", tmp_path / "sent")
    monkeypatch.chdir(tmp_path / "sent")
    done = atent("verify", ".", "--n", 2, "--protocol", "quick")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sent.card.json").is_file()


def test_a_network_that_cannot_be_scored_is_no_card_for_the_registry(home, tmp_path):
    sent = tmp_path / "sent"
    shutil.copytree(home / "sent", sent)
    weights = safetensors.torch.load_file(sent / "model.safetensors")
    safetensors.torch.save_file({name: 1e20 * one for name, one in weights.items()}, sent / "model.safetensors")
    done = atent("verify", sent, "--n", 2, "--protocol", "quick")
    assert done.returncode == 1
    assert "check failed: finite logits" in done.stdout
    assert "the registry takes no such card" in done.stdout


def test_what_is_no_submission_is_refused_in_one_line(tmp_path):
    refused(atent("verify", tmp_path / "missing"), "missing")
    (tmp_path / "empty").mkdir()
    refused(atent("verify", tmp_path / "empty"), "there is no weights file")
    refused(atent("submit", tmp_path / "none.json"), "none.json")


def test_adversaries_of_others_lower_a_card(home, tmp_path):
    shutil.copytree(home, tmp_path / "home")
    sent, images = tmp_path / "home" / "sent", tmp_path / "theirs.npz"
    strong = {"name": "strong", "description": "", "attacks": [{"attack": "clean"}, {"attack": "atent", "restarts": 3}]}
    (tmp_path / "strong.yaml").write_text(yaml.safe_dump(strong), encoding="utf-8")
    found = atent(
        *("eval", tmp_path / "home" / "run", "--protocol", tmp_path / "strong.yaml", "--n", 30, "--eps", 0.15),
        *("--save-adversaries", images, "--out", tmp_path / "theirs.json"),
    )
    assert found.returncode == 0, found.stderr
    verify = ("verify", sent, "--n", 30, "--protocol", "quick", "--seed", 2)
    refused(atent(*verify, "--by", "B. Attacker"), "--adversaries")
    before = cards.read_card(tmp_path / "home" / "sent.card.json")
    done = atent(*verify, "--adversaries", images, "--by", "B. Attacker")
    assert done.returncode == 0, done.stderr
    assert "of 30 adversarial images of theirs.npz" in done.stdout
    after = cards.read_card(tmp_path / "home" / "sent.card.json")
    assert after.report.worst_case < before.report.worst_case
    assert [one.settings["by"] for one in after.report.evidence] == ["B. Attacker"]
    assert "adversaries by B. Attacker" in done.stdout
    assert atent(*verify, "--adversaries", images).returncode == 0
    assert cards.read_card(tmp_path / "home" / "sent.card.json") == after
