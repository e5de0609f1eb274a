import json
from dataclasses import replace

import pytest
import torch
from commands import atent, refused

from atent_ext import subjects
from atent_ext.certification.smoothing import Certificate, Smoothing, certified_accuracy
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.data.splits import Split
from atent_ext.evaluation import certificates
from atent_ext.evaluation.certificates import Certified
from atent_ext.storage import locks
from atent_ext.subjects import run_folder
from atent_ext.training import recipes
from atent_ext.training.loop import fit

SMALL = ["epochs=2", "validation.count=100", "batch_size=64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified") / "run"
    noisy = ["objective={name: gaussian-noise, sigma: 0.25}", *SMALL]
    fit(recipes.load("digits-linf-sgd", noisy), datasets.load("digits"), folder)
    return folder


def test_certified_accuracy_counts_what_is_right_and_far_enough():
    found = [Certificate(3, 0.5, 90), Certificate(3, 0.1, 80), Certificate(2, 0.9, 99), Certificate(-1, 0.0, 40)]
    labels = torch.tensor([3, 3, 3, 3])
    assert [certified_accuracy(found, labels, radius) for radius in (0.0, 0.1, 0.2, 0.6)] == [0.5, 0.5, 0.25, 0.0]


def test_an_interrupted_certification_goes_on_as_if_it_had_not_been(run, tmp_path):
    subject, smoothing = run_folder.from_run(run), Smoothing(sigma=0.25, n0=20, n=200)
    whole = certificates.certify(subject, smoothing, tmp_path / "whole.json", 8, 3, lambda count: None)
    certificates.certify(subject, smoothing, tmp_path / "parts.json", 5, 3, lambda count: None)
    counts = []
    parts = certificates.certify(subject, smoothing, tmp_path / "parts.json", 8, 3, counts.append)
    assert counts == [6, 7, 8, 8]
    assert parts == whole == Certified.model_validate_json((tmp_path / "parts.json").read_text())
    assert json.loads((tmp_path / "parts.json").read_text()) == json.loads(whole.model_dump_json())
    with pytest.raises(BadInput, match=r"^\S*parts\.json holds another seed: 3, not 4; name another file$"):
        certificates.certify(subject, smoothing, tmp_path / "parts.json", 8, 4, lambda count: None)


def test_fewer_images_throw_no_certificate_away(run, tmp_path):
    subject, smoothing, path = run_folder.from_run(run), Smoothing(sigma=0.25, n0=20, n=200), tmp_path / "c.json"
    six = certificates.certify(subject, smoothing, path, 6, 3, lambda count: None)
    two = certificates.certify(subject, smoothing, path, 2, 3, lambda count: None)
    alone = certificates.certify(subject, smoothing, tmp_path / "alone.json", 2, 3, lambda count: None)
    assert two == Certified.model_validate_json(path.read_text())
    assert (two.images, two.certificates) == (2, six.certificates)
    assert two.certified_accuracy == alone.certified_accuracy
    counts = []
    assert certificates.certify(subject, smoothing, path, 6, 3, counts.append) == six
    assert counts == [6]


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", "{}", '{"certificates": [3]}', '{"certificates": {}}', "[" * 100_000]
)
def test_another_file_is_refused_and_left_alone(run, tmp_path, content):
    subject, smoothing, path = run_folder.from_run(run), Smoothing(sigma=0.25, n0=20, n=200), tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"c\.json is no report of `atent certify` \(.*\); name another file"):
        certificates.certify(subject, smoothing, path, 2, 3, lambda count: None)
    assert path.read_text() == content


def test_two_certifications_do_not_share_a_file(run, tmp_path):
    subject, smoothing, path = run_folder.from_run(run), Smoothing(sigma=0.25, n0=20, n=200), tmp_path / "c.json"
    with locks.held(path, ""), pytest.raises(BadInput, match=r"c\.json is in use by process"):
        certificates.certify(subject, smoothing, path, 2, 3, lambda count: None)


def test_every_kth_image_has_the_certificate_that_it_has_among_all(run, tmp_path):
    subject, smoothing = run_folder.from_run(run), Smoothing(sigma=0.25, n0=20, n=200)
    every = certificates.certify(subject, smoothing, tmp_path / "all.json", 9, 3, lambda count: None)
    few = certificates.certify(subject, smoothing, tmp_path / "few.json", 2, 3, lambda count: None, skip=4)
    few = certificates.certify(subject, smoothing, tmp_path / "few.json", 3, 3, lambda count: None, skip=4)
    assert few.certificates == every.certificates[::4]
    right = [c.prediction == y for c, y in zip(few.certificates, subject.test.labels[:9:4].tolist(), strict=True)]
    assert few.certified_accuracy["0"] == sum(right) / 3
    assert (few.images, few.skip) == (3, 4)
    with pytest.raises(BadInput, match="another skip: 4, not 3") as error:
        certificates.certify(subject, smoothing, tmp_path / "few.json", 3, 3, lambda count: None, skip=3)
    assert error.value.field == "skip"
    with pytest.raises(BadInput, match=r"images is 91 with skip 4, .* only 360 test images; ask for at most 90"):
        certificates.certify(subject, smoothing, tmp_path / "more.json", 91, 3, lambda count: None, skip=4)


NAME = "quickstart-digits-linf-sgd"
DRAWS = ["--sigma", 0.25, "--n", 200, "--n0", 20]


def test_the_command_takes_a_run_a_weights_file_and_a_name_of_the_zoo(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = atent("certify", run, *DRAWS, "--images", 3)
    assert done.returncode == 0, done.stderr
    assert "certified accuracy" in done.stdout
    assert json.loads((run / "certify-sigma0.25-n200-seed0.json").read_text())["images"] == 3
    weights = registry.folder("weights") / f"{NAME}.safetensors"
    named = ["--model", "digits-cnn", "--dataset", "digits"]
    for subject, options in ((NAME, []), (weights, named)):
        done = atent("certify", subject, *options, *DRAWS, "--skip", 150, "--max", 301, "--out", tmp_path / "c.json")
        assert done.returncode == 0, done.stderr
        assert f"{NAME} on digits, 3 test images, one in 150; sigma 0.25" in done.stdout
    subject, smoothing = subjects.load(NAME), Smoothing(sigma=0.25, n0=20, n=200)
    called = certificates.certify(subject, smoothing, tmp_path / "d.json", 3, 0, lambda count: None, skip=150)
    assert Certified.model_validate_json((tmp_path / "c.json").read_text()).certificates == called.certificates
    assert atent("certify", NAME, *DRAWS, "--skip", 300).returncode == 0
    (path,) = tmp_path.glob(f"runs/{NAME}-*/certify-sigma0.25-n200-seed0-skip300.json")
    assert json.loads(path.read_text())["images"] == 2


def test_the_command_refuses_what_it_cannot_certify(run):
    refused(atent("certify", run, "--sigma", 0.12, "--n", 47807, "--radius", 0.435), "needs n >= 47808")
    refused(atent("certify", run, *DRAWS, "--max", 361), "--max is 361", "360")
    refused(atent("certify", run, *DRAWS, "--skip", 2, "--max", 9, "--images", 6), "leave 5", "--images is 6")
    refused(atent("certify", run, *DRAWS, "--model", "digits-cnn"), "drop --model and --dataset")
    refused(atent("certify", run / "weights.safetensors", *DRAWS), "--model, --dataset")


def test_other_weights_or_another_first_image_are_another_certification(run, tmp_path):
    smoothing, path = Smoothing(sigma=0.25, n0=20, n=200), tmp_path / "c.json"
    certificates.certify(run_folder.from_run(run), smoothing, path, 2, 3, lambda count: None)
    other, moved = run_folder.from_run(run), run_folder.from_run(run)
    with torch.no_grad():
        next(other.model.parameters()).add_(0.01)
    moved = replace(moved, test=Split(moved.test.images.flip(0), moved.test.labels))
    for subject in (other, moved):
        with pytest.raises(BadInput) as error:
            certificates.certify(subject, smoothing, path, 2, 3, lambda count: None)
        assert (error.value.code, error.value.field) == ("other-content", "content_sha256")
    before = json.loads(path.read_text()) | {"content_sha256": None}  # a file of before has no such field
    path.write_text(json.dumps(before))
    assert certificates.certify(run_folder.from_run(run), smoothing, path, 2, 3, lambda count: None).content_sha256
