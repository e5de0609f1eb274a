"""`atent_ext.evaluate` on a torchvision ResNet-18 of random weights against stock pyautoattack, chunk by chunk.

    python eval/stress/in_memory_parity.py --out FILE.json [--images 64] [--chunk 16] [--eps 0.002]

The images are random, their labels the network's own predictions. Then the same evaluation is killed (SIGKILL) once
half of its chunks are on disk, called again, and compared. Exits with code 1 unless 10 to 54 of 64 images stay right,
all flags agree, and the resumed report is the undisturbed one but for its seconds.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torchvision.models import resnet18

import atent_ext
from atent_ext.evaluation.report import Report


def problem(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = resnet18(num_classes=10).eval()
    images = torch.rand(count, 3, 32, 32)
    with torch.no_grad():
        labels = network(images).argmax(1)
    return network, images, labels


def ours(images: int, chunk: int, eps: float, out: Path) -> Report:
    network, x, y = problem(images)
    return atent_ext.evaluate(
        network, x, y, norm="Linf", eps=eps, chunk=chunk, batch_size=chunk, speed="plain", seed=0, out=out
    )


def stock(images: int, chunk: int, eps: float) -> str:
    network, x, y = problem(images)
    flags = ""
    for number, (part, labels) in enumerate(zip(x.split(chunk), y.split(chunk), strict=True)):
        attack = AutoAttack(network, norm="Linf", eps=eps, seed=number, version="standard", device="cpu")
        found, _ = attack.run_standard_evaluation(part, labels, batch_size=chunk)
        with torch.no_grad():
            flags += "".join("01"[int(right)] for right in network(found).argmax(1) == labels)
    return flags


def killed(images: int, chunk: int, eps: float, out: Path) -> int:
    """Start an evaluation, kill it when half of the chunks are there; how many were."""
    command = [sys.executable, __file__, "--only", str(out), "--images", str(images), "--chunk", str(chunk)]
    process = subprocess.Popen([*command, "--eps", str(eps)])
    folder = out.with_name(f"{out.name}.chunks")
    while process.poll() is None:
        done = len(list(folder.glob("[0-9][0-9][0-9][0-9].json")))
        if done >= images // chunk // 2:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return done
        time.sleep(0.05)
    raise SystemExit("the evaluation ended before it was killed")


def undisturbed(report: Report) -> dict[str, object]:
    plain = report.model_dump(mode="json")
    for result in plain["results"]:
        result["seconds"] = 0
    return plain


def main(
    out: Annotated[Path | None, typer.Option()] = None,
    images: int = 64,
    chunk: int = 16,
    eps: float = 0.002,
    only: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    if only is not None:
        ours(images, chunk, eps, only)
        return
    with TemporaryDirectory() as folder:
        whole = ours(images, chunk, eps, Path(folder) / "whole.json")
        done = killed(images, chunk, eps, Path(folder) / "killed.json")
        resumed = ours(images, chunk, eps, Path(folder) / "killed.json")
    theirs = stock(images, chunk, eps)
    result = whole.result("autoattack")
    found = {
        "images": images,
        "chunk": chunk,
        "eps": eps,
        "right": result.correct,
        "flags_that_agree": sum(a == b for a, b in zip(result.flags, theirs, strict=True)),
        "chunks_before_the_kill": done,
        "resumed_is_undisturbed": undisturbed(resumed) == undisturbed(whole),
        "versions": whole.versions,
    }
    print(json.dumps(found, indent=1))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    good = 10 <= result.correct <= 54 and found["flags_that_agree"] == images and found["resumed_is_undisturbed"]
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
