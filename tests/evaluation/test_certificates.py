import json
import subprocess
import sys

import pytest
import torch

from atent_ext.certification.smoothing import Certificate, Smoothing, certified_accuracy
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
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


def test_the_command(run):
    def atent(*arguments):
        command = [sys.executable, "-m", "atent_ext", "certify", run, *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    done = atent("--sigma", 0.25, "--images", 3, "--n", 200, "--n0", 20)
    assert done.returncode == 0, done.stderr
    assert "certified accuracy" in done.stdout
    assert json.loads((run / "certify-sigma0.25-n200-seed0.json").read_text())["images"] == 3
    refused = atent("--sigma", 0.12, "--n", 47807, "--radius", 0.435)
    assert refused.returncode == 2
    assert "needs n >= 47808" in refused.stderr
