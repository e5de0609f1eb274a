"""The ways in which trainers save one network: what `torch.save` and safetensors write, and what it means.

Every way holds the network of `state`, and some hold another one beside it, which must not be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

State = Mapping[str, Tensor]
SCALE = {"mean": [0.25], "std": [0.5]}
"""The normalisation of the ways that have one, as a card states it."""


@dataclass(frozen=True)
class Way:
    """How a file is made of a state dict and of another one, which is not meant.

    file: its name. stated: the normalisation to state; None says nothing. half: whether the numbers are of half
    precision.
    """

    content: Callable[[State, State], Any]
    file: str = "model.pt"
    zipped: bool = True
    stated: Any = None
    half: bool = False

    def bytes(self, state: State, other: State) -> bytes:
        """The file's content."""
        made = self.content(state, other)
        if self.file.endswith(".safetensors"):
            return safetensors.torch.save(made)
        buffer = BytesIO()
        torch.save(made, buffer, _use_new_zipfile_serialization=self.zipped)
        return buffer.getvalue()


def prefixed(state: State, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def infixed(state: State, part: str, after: int = 1) -> dict[str, Tensor]:
    """`part` inside the names: a wrapper around each layer."""
    return {".".join([*(p := name.split("."))[:after], part, *p[after:]]): tensor for name, tensor in state.items()}


def floats(state: State) -> dict[str, Tensor]:
    """The parameters alone, as an average by `named_parameters` has them."""
    return {name: tensor for name, tensor in state.items() if not is_buffer(name)}


def is_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def scale(before: str = "") -> dict[str, Tensor]:
    return {f"{before}mean": torch.tensor(SCALE["mean"]), f"{before}std": torch.tensor(SCALE["std"])}


def averaged(state: State) -> dict[str, Tensor]:
    return {"n_averaged": torch.tensor(7), **prefixed(state, "module.")}


def expected(way: Way, state: State) -> dict[str, Tensor]:
    """The tensors that a file holds, in the network's precision."""
    return {
        name: tensor.half().float() if way.half and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


EXTRAS = {"epoch": 3, "global_step": 1200, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}

WAYS: Mapping[str, Way] = {
    "plain": Way(lambda s, o: dict(s)),
    "nested": Way(lambda s, o: {"model": dict(s), "optimizer": {"lr": 0.1}, "epoch": 3}),
    "nested twice": Way(lambda s, o: {"checkpoint": {"net": dict(s), "acc": torch.tensor(0.9)}, "epoch": 3}),
    "DataParallel": Way(lambda s, o: prefixed(s, "module.")),
    "DataParallel inside": Way(lambda s, o: infixed(s, "module")),
    "compiled": Way(lambda s, o: prefixed(s, "_orig_mod.")),
    "compiled and DataParallel": Way(lambda s, o: {"state_dict": prefixed(s, "_orig_mod.module.")}),
    "AveragedModel": Way(lambda s, o: {"model": dict(o), "swa_model": averaged(s), "epoch": 9}),
    "SWA": Way(lambda s, o: {"state_dict": dict(o), "swa_state_dict": dict(s), "swa_n": 9}),
    "timm's EMA": Way(lambda s, o: {"state_dict": dict(o), "state_dict_ema": dict(s), "arch": "tiny"}),
    "torch_ema": Way(
        lambda s, o: {
            "model": {**o, **{n: t for n, t in s.items() if is_buffer(n)}},
            "ema": {
                "decay": 0.99,
                "num_updates": 5,
                "shadow_params": list(floats(s).values()),
                "collected_params": None,
            },
        }
    ),
    "ema_pytorch": Way(
        lambda s, o: {
            **prefixed(o, "online_model."),
            **prefixed(s, "ema_model."),
            "initted": torch.tensor(True),
            "step": torch.tensor(9),
        }
    ),
    "a shadow of parameters": Way(
        lambda s, o: {
            "model": {**o, **{n: t for n, t in s.items() if is_buffer(n)}},
            "ema": {"decay": 0.999, "shadow": floats(s)},
        }
    ),
    "LitEma": Way(
        lambda s, o: {
            "state_dict": {
                **prefixed({**o, **{n: t for n, t in s.items() if is_buffer(n)}}, "model."),
                **{"model_ema." + name.replace(".", ""): tensor for name, tensor in floats(s).items()},
                "model_ema.decay": torch.tensor(0.999),
                "model_ema.num_updates": torch.tensor(4),
            }
        },
        "last.ckpt",
    ),
    "Lightning": Way(lambda s, o: {"state_dict": prefixed(s, "model."), **EXTRAS}, "last.ckpt"),
    "Lightning with extras": Way(
        lambda s, o: {
            "state_dict": {**prefixed(s, "net."), "criterion.weight": torch.ones(3), "metric.total": torch.tensor(5)},
            "hyper_parameters": {"lr": 0.1},
            **EXTRAS,
        },
        "last.ckpt",
    ),
    "Lightning's averaging": Way(
        lambda s, o: {
            "state_dict": prefixed(s, "net."),
            "current_model_state": prefixed(o, "net."),
            "averaging_state": {"n_averaged": torch.tensor(4)},
            **EXTRAS,
        },
        "last.ckpt",
    ),
    "MAIR": Way(
        lambda s, o: {
            "rmodel": {"n_classes": torch.tensor(10), **scale(), **prefixed(s, "model.")},
            "optimizer": {"lr": 0.1},
        },
        "last.pth",
        stated=SCALE,
    ),
    "robustness": Way(
        lambda s, o: {
            "model": {
                **scale("module.normalizer.new_"),
                **prefixed(s, "module.model."),
                **scale("module.attacker.normalize.new_"),
                **prefixed(s, "module.attacker.model."),
            },
            "epoch": 3,
        },
        stated=SCALE,
    ),
    "half": Way(lambda s, o: {n: t.half() if t.is_floating_point() else t for n, t in s.items()}, half=True),
    "legacy": Way(lambda s, o: {"state_dict": prefixed(s, "module.")}, "checkpoint.pth.tar", zipped=False),
    "pth.tar": Way(lambda s, o: {"epoch": 3, "arch": "tiny", "state_dict": dict(s)}, "model_best.pth.tar"),
    "safetensors": Way(lambda s, o: dict(s), "model.safetensors"),
    "safetensors with a prefix": Way(lambda s, o: prefixed(s, "model."), "model.safetensors"),
    "bin": Way(lambda s, o: dict(s), "pytorch_model.bin"),
    "pkl": Way(lambda s, o: dict(s), "net.pkl", zipped=False),
    "no suffix": Way(lambda s, o: dict(s), "weights-best"),
    "a normalisation as buffers": Way(lambda s, o: {**scale("normalize."), **prefixed(s, "model.")}, stated=SCALE),
    "behind a normalisation": Way(lambda s, o: prefixed(s, "1."), stated=SCALE),
    "folded": Way(lambda s, o: dict(s), stated="none"),
}
