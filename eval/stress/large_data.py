"""Whether memory grows with the number of images: peaks of `atent eval --protocol clean` on 50 and on all images.

    python eval/stress/large_data.py --out eval/results/large-data.json [--images 5000]

Images of 224×224 are written as a folder of JPEG files, as a compressed NumPy archive and as .npy files of uint8 and
float16. A small network scores the first 50 of each and all of them, in chunks of 50, each time in a process of its
own; the peak is the most resident memory of that process, as the operating system counts it. Exits with code 1 if a
peak grew by more than 0.2 GB.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import bench
import numpy as np
import typer
from PIL import Image

LIMIT = 0.2
"""GB."""
_FEW, _SIDE, _CLASSES, _DISTINCT = 50, 224, 100, 200
_NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 100)
    )
"""


def main(out: Annotated[Path, typer.Option()], images: Annotated[int, typer.Option(min=100)] = 5000) -> None:
    found = {}
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "net.py").write_text(_NETWORK)
        for name, write in KINDS.items():
            source = write(folder / name, images)
            few, most = (peak(folder, source, n) for n in (_FEW, images))
            found[name] = {"peak_gb": {str(_FEW): few, str(images): most}, "more_gb": round(most - few, 4)}
            print(f"{name}: {few:.3f} GB for {_FEW} images, {most:.3f} GB for {images}")
    good = all(one["more_gb"] <= LIMIT for one in found.values())
    bench.write(out, bench.about() | {"limit_gb": LIMIT, "side": _SIDE, "chunk": _FEW, "peaks": found, "good": good})
    sys.exit(not good)


def peak(folder: Path, source: str, n: int) -> float:
    """The most resident memory of an evaluation, in GB."""
    command = [
        sys.executable,
        "-m",
        "atent_ext",
        "eval",
        f"{folder}/net.py:make",
        "--dataset",
        source,
        "--eps",
        "4/255",
    ]
    command += ["--protocol", "clean", "--n", str(n), "--chunk", str(_FEW), "--batch-size", str(_FEW)]
    command += ["--out", f"{folder}/report.json", "--overwrite"]
    child = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"atent eval ended with {status}")
    return round(usage.ru_maxrss * 1024 / 1e9, 4)  # Linux counts in KiB


def pictures() -> Any:
    """A few smooth images (N, H, W, C) of 0-255, which the files repeat."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (_DISTINCT, 16, 16, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((_SIDE, _SIDE))) for one in small])


def folder(path: Path, count: int) -> str:
    for place, image in zip(range(count), _repeated(), strict=False):
        file = path / "val" / f"class{place % _CLASSES:03}" / f"{place:05}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, quality=90)
    return f"folder:{path}"


def archive(path: Path, count: int) -> str:
    labels = np.arange(count) % _CLASSES
    path.mkdir()
    np.savez_compressed(path / "a.npz", x_test=pictures()[np.arange(count) % _DISTINCT], y_test=labels)
    return f"npz:{path}/a.npz"


def files(path: Path, count: int, dtype: Any = np.uint8) -> str:
    path.mkdir()
    shape = (count, _SIDE, _SIDE, 3)
    images = np.lib.format.open_memmap(path / "x_test.npy", "w+", dtype, shape)
    for place, image in zip(range(count), _repeated(), strict=False):
        images[place] = image
    images.flush()
    np.save(path / "y_test.npy", np.arange(count) % _CLASSES)
    return f"npy:{path}"


def _repeated() -> Any:
    images = pictures()
    while True:
        yield from images


KINDS: dict[str, Callable[[Path, int], str]] = {
    "folder of JPEG files": folder,
    "compressed archive": archive,
    "npy, uint8": files,
    "npy, float16": lambda path, count: files(path, count, np.float16),
}


if __name__ == "__main__":
    typer.run(main)
