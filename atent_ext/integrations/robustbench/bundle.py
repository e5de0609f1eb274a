"""A bundle for RobustBench's maintainers from a card of the registry, and a check of it without atent_ext."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from atent_ext.core import compat
from atent_ext.core.errors import BadInput
from atent_ext.integrations.robustbench import register_file, registration
from atent_ext.integrations.robustbench.card import form, model_info
from atent_ext.integrations.robustbench.export import with_prefix
from atent_ext.integrations.robustbench.source import Source, normalised, source
from atent_ext.models import wrappers
from atent_ext.storage import files
from atent_ext.submissions import cards, folder
from atent_ext.submissions.cards import PROGRAM, Card, Submission

_CHECK = """\
import sys


class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "atent_ext":
            raise ModuleNotFoundError(f"there is no {name} in this check")


folder, arrays = sys.argv[1:]
sys.meta_path.insert(0, Nowhere())
sys.path.insert(0, folder)
import register
import numpy, torch
from robustbench.utils import clean_accuracy, load_model

model = load_model(register.NAME, register.MODELS, register.DATASET, register.THREAT)
with numpy.load(arrays) as held:
    images, labels = (torch.from_numpy(held[name]) for name in ("images", "labels"))
print(repr(clean_accuracy(model, images, labels)))
"""


def bundle(card: Card, weights: Path, out: Path) -> list[Path]:
    """Write the files that RobustBench requires to the new folder `out`; return the files.

    model_info/DATASET/THREAT/NAME.json   the card in RobustBench's format
    models/DATASET/THREAT/NAME.pt         the weights, a plain state dict for `load_model(model_dir="models")`
    register.py                           adds the model to RobustBench's zoo at run time, without atent_ext
    entry.py.txt                          the entry for RobustBench's own model_zoo
    ARCHITECTURE.py                       the network, if no package that RobustBench needs defines it
    issue.md, README.md                   the filled form "New Model(s)"; instructions

    Raises BadInput if `out` exists; for weights that are not the file of the card or do not fit its network; for a card
    that RobustBench cannot take (a random network, no standard AutoAttack, a name of its own zoo, another package's
    architecture); and what `folder.shape` raises. MissingExtra if robustbench is not installed.
    """
    compat.robustbench()
    submission = card.submission
    registration.check_name(submission.name)
    if submission.random:
        message = f"{submission.name} is declared random; RobustBench takes deterministic networks only"
        raise BadInput(message, code="unsupported", field="random")
    if submission.architecture.name == PROGRAM:
        message = f"{submission.name} is an exported program; RobustBench takes networks in source code"
        raise BadInput(message, code="unsupported", field="architecture")
    if out.exists():
        raise BadInput(f"{out} exists; name a folder that does not", code="exists", field="out")
    cards.content_of(card, weights)
    texts = _texts(card, _source(submission))
    state = with_prefix(_network(submission, weights).state_dict())
    return _write(out, _place("models", submission, "pt"), state, texts)


def check(out: Path, images: Tensor, labels: Tensor) -> float:
    """The clean accuracy, in [0, 1], of the model that RobustBench's `load_model` loads from the bundle `out`.

    images: (N, C, H, W) in [0, 1]. labels: (N,). A separate Python process, which cannot import atent_ext, loads the
    model and counts. It runs the bundle's register.py: only check bundles that `bundle` wrote, not untrusted ones.
    Raises BadInput if `out` is not a bundle, and with the last line of the process's errors if that fails.
    """
    if not (out / "register.py").is_file() or len(list(out.glob("models/*/*/*.pt"))) != 1:
        message = f"{out} is no bundle: it lacks register.py or the checkpoint below models; write it anew"
        raise BadInput(message, code="missing", field="out")
    with tempfile.TemporaryDirectory() as temporary:
        arrays = Path(temporary, "arrays.npz")
        np.savez(arrays, images=images.numpy(force=True), labels=labels.numpy(force=True))
        command = [sys.executable, "-I", "-B", "-c", _CHECK, str(out.resolve()), str(arrays)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        message = f"RobustBench cannot load the bundle {out}: {lines[-1][:300]}; write it anew"
        raise BadInput(message, code="unreadable", field="out")
    return float(done.stdout.splitlines()[-1])


def _source(submission: Submission) -> Source:
    architecture, scale = submission.architecture, submission.scale
    classes, (channels, _, _) = folder.shape(submission.dataset)
    plain = source(architecture.name, classes, channels, architecture.arguments)
    return plain if scale is None else normalised(plain, submission.name, scale.mean, scale.std)


def _network(submission: Submission, weights: Path) -> nn.Module:
    """The network with the weights as `atent verify` reads them, without its normalisation."""
    network, _ = folder.filled(submission, weights.read_bytes(), weights, [])
    return network.network if isinstance(network, wrappers.Normalised) else network


def _place(folder: str, submission: Submission, suffix: str) -> Path:
    return Path(folder, submission.dataset, submission.threat.norm, f"{submission.name}.{suffix}")


def _texts(card: Card, network: Source) -> dict[Path, str]:
    """The text files, by their path in the bundle."""
    submission = card.submission
    info = json.dumps(model_info(card, network.title), indent=2, ensure_ascii=False)
    own = {Path(f"{network.module}.py"): network.file} if network.file else {}
    return {
        _place("model_info", submission, "json"): f"{info}\n",
        Path("register.py"): register_file.register(submission, network),
        Path("entry.py.txt"): register_file.entry(submission, network),
        **own,
        Path("issue.md"): form(card, network),
        Path("README.md"): register_file.readme(card, network),
    }


def _write(out: Path, file: Path, state: dict[str, Tensor], texts: dict[Path, str]) -> list[Path]:
    files.save_state(state, out / file)
    for path, text in texts.items():
        files.write(out / path, text)
    return [out / path for path in (file, *texts)]
