"""Networks as Python source code for RobustBench: its own class if it has one, else a file that imports torch only."""

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.version import __version__
from atent_ext.models import networks

_ARCHITECTURES = "robustbench.model_zoo.architectures"


@dataclass(frozen=True)
class Source:
    """A network as source code: the call `base`(`arguments`) after the import line `imported`.

    title: its name on the leaderboard. module, file: the name and the text of a module that defines `base` and has to
    be added to RobustBench's architectures, "" if an installed package defines it. wrapper: the text of a subclass
    named `base`, "" for none.
    """

    title: str
    imported: str
    base: str
    arguments: str
    module: str = ""
    file: str = ""
    wrapper: str = ""

    @property
    def call(self) -> str:
        """The expression that makes the network."""
        return f"{self.base}({self.arguments})"


class LeNet5(nn.Module):
    """Conv 32 and 64, each with a max-pool 2, then fc `hidden` and `classes`, for 28×28 images.

    Its parameters have the names that advertorch gives them: kernel 3 and 200 hidden units are its LeNet5, kernel 5 and
    1,024 its LeNet5Madry.
    """

    def __init__(self, classes: int = 10, channels: int = 1, kernel: int = 3, hidden: int = 200) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(32, 64, kernel, padding=kernel // 2)
        self.linear1 = nn.Linear(64 * 7 * 7, hidden)
        self.linear2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, 28, 28) to logits (N, classes)."""
        maps = F.max_pool2d(F.relu(self.conv1(x)), 2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        logits: Tensor = self.linear2(F.relu(self.linear1(maps.flatten(1))))
        return logits


_RESNET18 = Source(
    "ResNet-18", f"from {_ARCHITECTURES}.resnet import BasicBlock, ResNet", "ResNet", "BasicBlock, [2, 2, 2, 2]"
)
# Networks that RobustBench or torchvision defines. pyautoattack's ResNet-18 has the layers and keys of RobustBench's.
_ROBUSTBENCH = {
    "resnet-18": _RESNET18,
    "resnet-18-pyautoattack": _RESNET18,
    "wrn-34-10": Source(
        "WideResNet-34-10",
        f"from {_ARCHITECTURES}.wide_resnet import WideResNet",
        "WideResNet",
        "depth=34, widen_factor=10",
    ),
    "vgg-11": Source(
        "VGG-11", "from torchvision.models.vgg import VGG, cfgs, make_layers", "VGG", 'make_layers(cfgs["A"])'
    ),
}
# Networks of a library that RobustBench does not depend on: a class of our own takes their weights.
_REPLACEMENTS: Mapping[str, tuple[type[nn.Module], Mapping[str, Any]]] = {
    "lenet5-advertorch": (LeNet5, {"kernel": 3, "hidden": 200}),
    "lenet5-madry": (LeNet5, {"kernel": 5, "hidden": 1024}),
}
# Names that our definitions use, and the lines that define them in an exported file.
_LINES = {
    "Any": "from typing import Any",
    "torch": "import torch",
    "Tensor": "from torch import Tensor",
    "nn": "from torch import nn",
    "F": "from torch.nn import functional as F",
    "BadInput": """

class BadInput(ValueError):
    \"""The error of atent-ext for bad arguments.\"""

    def __init__(self, message, *, code=None, field=None):
        super().__init__(message)
        self.code, self.field = code, field""",
}

_FILE = '''\
"""The network {title}, which needs torch alone. Written by atent-ext {version}; it has the MIT license of atent-ext."""

{lines}


{definitions}
'''

_WRAPPER = '''\
import torch


class {kind}({base}):
    """{base} on images in [0, 1], which it normalises itself."""

    def __init__(self):
        super().__init__({arguments})
        # Not among the tensors that are saved: the checkpoint has the keys of {base}.
        self.register_buffer("input_mean", torch.tensor({mean}).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("input_std", torch.tensor({std}).view(1, -1, 1, 1), persistent=False)

    def forward(self, x):
        return super().forward((x - self.input_mean) / self.input_std)
'''


def robustbench_source(name: str, classes: int, arguments: Mapping[str, Any]) -> Source | None:
    """The source of a network of the registry that RobustBench or torchvision defines; None for all others.

    With `arguments` a network may be another class, which has no source here.
    """
    entry = None if arguments else _ROBUSTBENCH.get(name)
    return entry and replace(entry, arguments=f"{entry.arguments}, num_classes={classes}")


def source(name: str, classes: int, channels: int, arguments: Mapping[str, Any]) -> Source:
    """The source of a network of the registry with `arguments`, for `classes` classes and `channels` channels.

    Raises BadInput for an unknown name, and for another package's network that RobustBench does not have.
    """
    known = robustbench_source(name, classes, arguments)
    if known:
        return known
    kind, options = _REPLACEMENTS.get(name) or (registry.resolve("model", name), arguments)
    if not (inspect.isclass(kind) and kind.__module__ in (networks.__name__, __name__)):
        message = f"architecture {name!r} is neither RobustBench's nor ours; contribute its class to RobustBench's "
        message += "model_zoo/architectures first, then write the entry by hand"
        raise BadInput(message, code="unsupported", field="architecture.name")
    module, title = re.sub(r"\W", "_", name), kind.__name__
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    imported = f"from {_ARCHITECTURES}.{module} import {title}"
    return Source(title, imported, title, f"classes={classes}, channels={channels}{more}", module, _file(kind))


def normalised(network: Source, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Source:
    """The network in a subclass NAMENet that normalises its images, which is RobustBench's convention."""
    kind = f"_{name}Net" if name[0].isdigit() else f"{name}Net"
    kind = re.sub(r"\W", "_", kind)
    text = _WRAPPER.format(kind=kind, base=network.base, arguments=network.arguments, mean=list(mean), std=list(std))
    return replace(network, base=kind, arguments="", wrapper=text)


def _file(kind: type[Any]) -> str:
    parts = _parts(kind)
    used = set[str]().union(*map(_names, parts))
    lines = "\n".join(line for name, line in _LINES.items() if name in used)
    definitions = "\n\n".join(map(inspect.getsource, parts)).rstrip()
    return _FILE.format(title=kind.__name__, version=__version__, lines=lines, definitions=definitions)


def _parts(kind: type[Any]) -> list[Any]:
    """The class and the definitions of its module that it uses, directly or indirectly, in source order."""
    module = vars(inspect.getmodule(kind))
    parts: dict[str, Any] = {kind.__name__: kind}
    new: list[Any] = [kind]
    while new:
        for name in _names(new.pop()) - parts.keys():
            part = module.get(name)
            if getattr(part, "__module__", None) == kind.__module__:
                parts[name] = part
                new.append(part)
    return sorted(parts.values(), key=lambda part: inspect.getsourcelines(part)[1])


def _names(part: Any) -> set[str]:
    """The names that a definition reads."""
    return {node.id for node in ast.walk(ast.parse(inspect.getsource(part))) if isinstance(node, ast.Name)}
