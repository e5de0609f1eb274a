"""How long the leaderboard of many cards takes to build.

python eval/benchmarks/bench_board.py
"""

import sys
import tempfile
import time
from pathlib import Path

import typer

from atent_ext.leaderboard import site

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import sample_cards


def main(cards: int = 300, images: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "cards")
        for number in range(cards):
            name, eps = f"model-{number}", (number % 8 + 1) / 255
            made = sample_cards.card(name, clean=0.9, robust=0.3 + 0.4 * number / cards, n=images, eps=eps)
            sample_cards.write(folder, made)
        begin = time.perf_counter()
        files = site.build(folder, Path(temporary, "site"))
        seconds = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in files)
    print(f"{cards} cards of {images} images: {len(files)} files, {size / 1e6:.1f} MB, {seconds:.2f} seconds")


if __name__ == "__main__":
    typer.run(main)
