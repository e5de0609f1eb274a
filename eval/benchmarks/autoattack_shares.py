"""Where the time of standard AutoAttack goes: passes of the network and the rest, as it is and as it is prepared.

    python eval/benchmarks/autoattack_shares.py --data-root DATA
    python eval/benchmarks/autoattack_shares.py --network mnist-linf-mart --n 10 --speed plain --data-root DATA

pyautoattack attacks the first images of a published network in one batch, on one thread, with seed 0. Seconds are those
of the processor: forward passes without and with a gradient, backward passes, and all else that the attacks compute.
`plain` is the network as pyautoattack gets it; the other settings are those of `atent eval --speed`.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import bench
import torch
import typer
from pyautoattack import AutoAttack
from torch import Tensor, nn

from atent_ext.data.datasets import Split
from atent_ext.models.speed import prepare
from atent_ext.storage import files
from atent_ext.subjects import zoo

RESULTS = Path(__file__).parents[1] / "results" / "autoattack-shares.json"


class Timed(nn.Module):
    """A network of which the seconds of forward passes are counted, and the images that passed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images, self.seconds = network, 0, {"forward": 0.0, "forward for a gradient": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        began = time.process_time()
        logits: Tensor = self.network(x)
        kind = "forward for a gradient" if torch.is_grad_enabled() and x.requires_grad else "forward"
        self.seconds[kind] += time.process_time() - began
        self.images += len(x)
        return logits


def shares(network: nn.Module, split: Split, norm: str, eps: float) -> dict[str, Any]:
    """Seconds of each part, of all, how many images passed forward, and the flags."""
    timed, backward = Timed(network).eval(), 0.0

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal backward
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                backward += time.process_time() - began

        return call

    attack = AutoAttack(timed, norm=norm, eps=eps, seed=0, version="standard")
    began = time.process_time()
    grad = mock.patch.object(torch.autograd, "grad", watched(torch.autograd.grad))
    with grad, mock.patch.object(Tensor, "backward", watched(Tensor.backward)):
        found, _ = attack.run_standard_evaluation(split.images, split.labels, batch_size=250)
    total = time.process_time() - began
    with torch.no_grad():
        right = network(found).argmax(1) == split.labels
    parts = {**timed.seconds, "backward": backward}
    parts |= {"the rest": total - sum(parts.values()), "all": total}
    return {
        "seconds": {name: round(part, 2) for name, part in parts.items()},
        "forward_images": timed.images,
        "flags": "".join("01"[int(flag)] for flag in right),
    }


def main(
    network: str = "mnist-linf-trades",
    n: Annotated[int, typer.Option("--n")] = 20,
    speed: Annotated[list[str] | None, typer.Option()] = None,
    data_root: Annotated[Path | None, typer.Option()] = None,
    out: Annotated[Path, typer.Option()] = RESULTS,
) -> None:
    torch.set_num_threads(1)
    subject = zoo.from_card(network, root=data_root or Path(os.environ.get("ATENT_DATA", ".")))
    split, runs = subject.test.take(n), {}
    for how in speed or ("plain", "channels-last", "compile"):
        chosen = subject.model if how == "plain" else prepare(subject.model, split.images, how).model
        runs[how] = shares(chosen, split, subject.threat.norm, subject.threat.eps)
        print(how, runs[how]["seconds"], flush=True)
    what = f"standard AutoAttack on the first {n} test images, one thread, seed 0"
    report = {"what": what, **bench.about(), "network": network, "threat": subject.threat.model_dump(), "runs": runs}
    files.write(out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
