"""Loads models of RobustBench 1.1.1 (Croce et al. 2021, arXiv:2010.09670) for our evaluation, without downloads."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import nn

from atent_ext.core import compat, registry
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import norm as norm_called
from atent_ext.storage import files

LEADERBOARD_EPS: Mapping[tuple[str, str], float] = {
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("cifar100", "Linf"): 8 / 255,
    ("imagenet", "Linf"): 4 / 255,
}
"""eps of RobustBench's leaderboards, by data set and threat model."""


def load_zoo(name: str, *, dataset: str, threat_model: str, model_dir: Path | str = "models") -> nn.Module:
    """A model of RobustBench's zoo, in eval mode, from the checkpoints in `model_dir`; nothing is downloaded.

    RobustBench's own `load_model` loads it, after a check that the files contain tensors only and no code.
    Raises BadInput for an unknown name, data set or threat model, and for a file that is missing, contains anything but
    tensors or does not fit the network; MissingExtra if robustbench is not installed.
    """
    for path in zoo_files(name, dataset=dataset, threat_model=threat_model, model_dir=model_dir):
        files.tensors(path)
    from robustbench.utils import load_model

    try:
        with redirect_stdout(io.StringIO()), seeded(0):  # it prints, and draws weights that it replaces
            network: nn.Module = load_model(name, Path(model_dir), dataset, threat_model)
    except BadInput:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        message = f"RobustBench cannot make its model {name!r} of the file in {model_dir}: {reason}"
        raise BadInput(message, code="unreadable", field="model_dir") from None
    return network


def zoo_files(name: str, *, dataset: str, threat_model: str, model_dir: Path | str = "models") -> list[Path]:
    """The checkpoints that RobustBench reads for a model of its zoo. Raises as `check`, and if a file is missing."""
    check(name, dataset=dataset, threat_model=threat_model)
    entry, member = _zoo_entry(name, dataset, threat_model)
    file = Path(model_dir) / member.value / threat_model / f"{name}.pt"
    source = entry.get("gdrive_id")
    parts = range(len(source)) if isinstance(source, list) else None
    files = [file] if parts is None else [file.with_name(f"{file.name}_m{part}.pt") for part in parts]
    for path in files:
        if not path.is_file():
            message = f"there is no checkpoint {path}; put it there, or name the model_dir that has it"
            raise BadInput(message, code="missing", field="model_dir")
    return files


def check(name: str, *, dataset: str, threat_model: str) -> None:
    """Raise BadInput unless RobustBench's zoo has a model of this name that it reads from a file. No file is looked at.

    Raises MissingExtra if robustbench is not installed.
    """
    entry, member = _zoo_entry(name, dataset, threat_model)
    if entry.get("gdrive_id") is None or (member.value == "imagenet" and "Standard" in name):
        message = f"RobustBench reads {name!r} from no model_dir: another package downloads it; choose another"
        raise BadInput(message, code="unsupported", field="name")


def _zoo_entry(name: str, dataset: str, threat_model: str) -> tuple[Mapping[str, Any], Any]:
    compat.robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    norm_called(threat_model)
    known = BenchmarkDataset._value2member_map_
    if dataset not in known:
        raise registry.nearest("data set of RobustBench", dataset, known)
    zoo = model_dicts[known[dataset]].get(ThreatModel(threat_model), {})
    if not zoo:
        message = f"RobustBench has no {threat_model} models for {dataset}; choose another norm or data set"
        raise BadInput(message, code="missing", field="threat_model")
    if name not in zoo:
        raise registry.nearest(f"{threat_model} model of RobustBench for {dataset}", name, zoo)
    return zoo[name], known[dataset]
