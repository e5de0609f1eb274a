"""`atent doctor`: tests which optional packages ("neighbours") work here, by using each once.

Each test runs in a process of its own, because an import may crash, hang, print or change other packages
(robustbench needs a stand-in for `autoattack`). This module imports no neighbour.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from atent_ext.core.errors import AtentError
from atent_ext.core.registry import nearest
from atent_ext.core.version import __version__

Row = dict[str, Any]
"""neighbour, version (or None), status ("ok", "not installed" or "fails"), reason (of a failure, or None), repaired (a
list of texts), use (what needs it), install (the command, or None if it is installed)."""

TIMEOUT = 180
_EPS = 0.1
# The child gets the caller's sys.path; Python would put the current folder in front. It ends without taking torch to
# pieces, which needs another second.
_CHILD = "import os, sys; sys.path[:] = sys.argv[2:]; from atent_ext.cli import doctor; doctor.answer(sys.argv[1]); "
_CHILD += "os._exit(0)"


@dataclass(frozen=True)
class Neighbour:
    """A package that atent-ext needs or supports; `attempt` uses it once, on two points, by our adapter.

    module: the name for imports. extra: the extra of atent-ext, or the URL for pip if there is none; None for a
    requirement of atent-ext. use: what needs it. other_name: the distribution's name if it is not the module's.
    """

    module: str
    extra: str | None
    use: str
    attempt: Callable[[], None]
    other_name: str | None = None

    @property
    def distribution(self) -> str:
        """The name for pip."""
        return self.other_name or self.module

    @property
    def install(self) -> str:
        """The command that installs it."""
        if self.extra is None:
            return "pip install --upgrade atent-ext"
        return f"pip install {self.extra}" if "://" in self.extra else f"pip install 'atent-ext[{self.extra}]'"

    def installed(self) -> bool:
        """Whether the module exists and belongs to this package: two packages on PyPI have a module `art`."""
        owners = importlib.metadata.packages_distributions().get(self.module, [])
        exists = importlib.util.find_spec(self.module) is not None
        return exists and (not owners or self.distribution in {owner.lower().replace("_", "-") for owner in owners})

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


def check(names: Sequence[str] = ()) -> dict[str, Any]:
    """Test the named neighbours (default: all), two at a time: versions, platform, device, and a `Row` for each.

    No neighbour is imported into this process. Raises BadInput for an unknown name.
    """
    for name in names:
        if name not in NEIGHBOURS:
            raise nearest("neighbour", name, NEIGHBOURS)
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(_test, [name for name in NEIGHBOURS if name in names or not names]))
    devices = [device for row in rows if (device := row.pop("device", None))]
    return {
        "atent-ext": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": devices[0] if devices else None,
        "neighbours": rows,
    }


def healthy(report: Mapping[str, Any]) -> bool:
    """Whether all installed neighbours work and the requirements of atent-ext are installed."""
    bad = [row for row in report["neighbours"] if row["status"] == "fails"]
    missing = [row for row in report["neighbours"] if row["status"] == "not installed"]
    return not bad and all(NEIGHBOURS[row["neighbour"]].extra for row in missing)


def _row(name: str, status: str, reason: str | None = None, repaired: Sequence[str] = ()) -> Row:
    neighbour = NEIGHBOURS[name]
    return {
        "neighbour": name,
        "version": neighbour.version(),
        "status": status,
        "reason": reason and textwrap.shorten(reason, 300, placeholder=" ..."),
        "repaired": list(repaired),
        "use": neighbour.use,
        "install": neighbour.install if status == "not installed" else None,
    }


def _test(name: str) -> Row:
    """Examine a neighbour in a new process."""
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, name, *sys.path]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # the work is tiny, and two children run at a time
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=one_thread, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return _row(name, "fails", f"does not end within {TIMEOUT} s")
    try:
        row: Row = json.loads(done.stdout)
        return row
    except ValueError:
        code = done.returncode
        end = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return _row(name, "fails", f"its process ended with {end} {done.stderr.strip()[-200:]}")


def answer(name: str) -> None:
    """Examine a neighbour and print its `Row` as JSON; the entry point of the new process."""
    out = os.dup(1)
    os.dup2(2, 1)  # output of the neighbour goes to stderr
    row = _examine(name)
    with os.fdopen(out, "w") as stream:
        json.dump(row, stream)


def _examine(name: str) -> Row:
    neighbour = NEIGHBOURS[name]
    stage = "import"
    try:
        if not neighbour.installed():
            return _not_installed(name, neighbour)
        repaired = _import(name)
        stage = "use"
        neighbour.attempt()
    except (Exception, SystemExit) as error:
        return _row(name, "fails", f"{stage}: {type(error).__name__}: {error}")
    return _row(name, "ok", repaired=repaired) | {"device": _device()}


def _import(name: str) -> list[str]:
    """Import a neighbour, with the repair of `core.compat` if it has one; returns what was repaired."""
    plain = partial(importlib.import_module, NEIGHBOURS[name].module)
    if name not in ("advertorch", "pyautoattack", "robustbench"):
        plain()
        return []
    from atent_ext.core import compat

    repaired = compat.repairs(name)
    {"advertorch": compat.advertorch, "robustbench": compat.robustbench}.get(name, plain)()
    return repaired


def _not_installed(name: str, neighbour: Neighbour) -> Row:
    version = neighbour.version()
    if version is None:
        return _row(name, "not installed")
    return _row(name, "fails", f"{neighbour.distribution} {version} is installed, but its module is not; reinstall it")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- a use of each neighbour, in the process of `answer`


def _problem() -> tuple[Any, Any, Any]:
    """A network of two layers, two images (1, 2, 2), and the network's predictions for them."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(2, 1, 2, 2)
    return model, x, model(x).argmax(1)


def _expect_attack(x: Any, adversary: Any) -> None:
    moved = float((adversary - x).abs().max())
    if not 0 < moved <= _EPS + 1e-5:
        raise AtentError(f"an attack of radius {_EPS} moved its images by {moved:.3g}", code="unsupported")


def _torch() -> None:
    from atent_ext.attacks import langevin
    from atent_ext.core.losses import cross_entropy
    from atent_ext.core.norms import LINF

    model, x, y = _problem()
    _expect_attack(x, langevin.last_iterate(langevin.atent(LINF, _EPS, 2), model, x, y, cross_entropy))


def _torchvision() -> None:
    import torch
    from torchvision.ops import nms  # compiled: it fails where torchvision was built for another torch

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise AtentError(f"its operators keep boxes {kept} instead of [0, 2]", code="unsupported")


def _accelerate() -> None:
    import torch

    from atent_ext.data import datasets
    from atent_ext.training import recipes
    from atent_ext.training.loop import fit

    small = ["epochs=1", "batch_size=10", "objective.steps=1", "validation.count=10", "validation.steps=1"]
    split = datasets.Split(torch.rand(30, 1, 8, 8), torch.arange(30) % 10)
    with tempfile.TemporaryDirectory() as folder:
        fit(recipes.load("digits-linf-atent", small), datasets.DataSet("", tuple("0123456789"), split, split), folder)


def _advertorch() -> None:
    from atent_ext.attacks.advertorch_style import LinfATENTAttack

    model, x, y = _problem()
    _expect_attack(x, LinfATENTAttack(model, eps=_EPS, nb_iter=2, eps_iter=_EPS)(x, y))


def _autoattack() -> None:
    from atent_ext.attacks import autoattack

    model, x, y = _problem()
    result = autoattack.run(model, x, y, norm="Linf", eps=1.0, attacks=["apgd-ce"])
    if bool(result.robust.any()):
        raise AtentError("APGD of radius 1 fooled a linear network on no image", code="unsupported")


def _pyautoattack() -> None:
    modules: Any = sys.modules
    modules["autoattack"] = None  # hides the original, which would be preferred
    _autoattack()


def _torchattacks() -> None:
    from atent_ext.integrations.torchattacks import ATENT

    model, x, y = _problem()
    _expect_attack(x, ATENT(model, eps=_EPS, alpha=_EPS, steps=2)(x, y))


def _foolbox() -> None:
    from foolbox import PyTorchModel

    from atent_ext.integrations.foolbox import LinfATENTAttack

    model, x, y = _problem()
    attacked = PyTorchModel(model, bounds=(0, 1), device="cpu")
    _expect_attack(x, LinfATENTAttack(steps=2)(attacked, x, y, epsilons=_EPS)[1])


def _robustbench() -> None:
    from robustbench.utils import load_model

    from atent_ext.integrations.robustbench import registration

    model, x, _ = _problem()
    registration.register("doctor", dataset="cifar10", threat_model="Linf", model=lambda: model, trained=True)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model("doctor", folder, "cifar10", "Linf")
    if not loaded(x).equal(model(x)):
        raise AtentError("load_model does not return the registered model", code="unsupported")


def _art() -> None:
    import torch
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    from atent_ext.integrations.art import ATENTAttack

    model, x, y = _problem()
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), x[0].shape, 3, clip_values=(0, 1), device_type="cpu")
    adversary = ATENTAttack(estimator, eps=_EPS, max_iter=2, verbose=False).generate(x.numpy(), y.numpy())
    _expect_attack(x, torch.from_numpy(adversary))


def _mair() -> None:
    from mair import RobModel

    from atent_ext.integrations.mair import trainer_class
    from atent_ext.objectives import ATENT

    model, x, y = _problem()
    objective = ATENT(norm="Linf", eps=_EPS, steps=1, step_size=_EPS)
    trainer_class()(RobModel(model, n_classes=3), objective).calculate_cost((x, y)).backward()
    if model[1].weight.grad is None:
        raise AtentError("the trainer's cost has no gradient", code="unsupported")


def _timm() -> None:
    from atent_ext.models import networks

    networks.build("vit", classes=3, channels=1, size="tiny", image_size=32)


def _huggingface() -> None:
    from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

    if not callable(hf_hub_download) or "mit" not in str(ModelCard(f"---\n{ModelCardData(license='mit')}\n---\n")):
        raise AtentError("a model card lacks its license", code="unsupported")


_ALL = (
    Neighbour("torch", None, "everything", _torch),
    Neighbour("torchvision", None, "data sets, the models vgg-11 and resnet-50", _torchvision),
    Neighbour("accelerate", None, "atent train, atent_ext.fit", _accelerate),
    Neighbour("advertorch", None, "attacks.LinfATENTAttack", _advertorch),
    Neighbour("pyautoattack", None, "atent eval", _pyautoattack),
    Neighbour(
        "autoattack", "git+https://github.com/fra31/auto-attack", "atent eval instead of pyautoattack", _autoattack
    ),
    Neighbour("torchattacks", "torchattacks", "integrations.torchattacks.ATENT", _torchattacks),
    Neighbour("robustbench", "robustbench", "integrations.robustbench.register, resnet-18, wrn-28-10", _robustbench),
    Neighbour("foolbox", "foolbox", "integrations.foolbox.LinfATENTAttack", _foolbox),
    Neighbour("art", "art", "integrations.art.ATENTAttack", _art, "adversarial-robustness-toolbox"),
    Neighbour("timm", "timm", "the models convnext and vit", _timm),
    Neighbour("huggingface_hub", "hub", "hf:OWNER/NAME, atent submit --to", _huggingface, "huggingface-hub"),
    Neighbour("mair", "git+https://github.com/Harry24k/MAIR", "integrations.mair.trainer_class", _mair),
)
NEIGHBOURS: Mapping[str, Neighbour] = {neighbour.module: neighbour for neighbour in _ALL}
"""All neighbours by module name, in the order of the report."""
