"""The picture of draws over the Gibbs law in two dimensions, and the table under it."""

import json

import pytest
import scripts
import torch

GUIDE = scripts.EVAL.parent / "docs" / "guide" / "attack.md"
COMMITTED = scripts.EVAL / "results" / "sampling.json"


def test_the_drawn_mass_is_the_integrated_one(tmp_path):
    page, results, picture = (tmp_path / name for name in ("attack.md", "sampling.json", "sampling.png"))
    page.write_text(GUIDE.read_text(encoding="utf-8"), encoding="utf-8")
    call = ("--calls", 400, "--draws", 60, "--page", page, "--results", results, "--picture", picture)
    done = scripts.run("pages/write_sampling", *call)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())
    assert len(found["rows"]) == 4
    for row in found["rows"]:
        assert row["drawn"] == pytest.approx(row["integrated"], abs=0.02)
        assert row["error"] > 3 * abs(row["drawn"] - row["integrated"])
    script = scripts.module("pages/write_sampling")
    assert script.table(found) in page.read_text(encoding="utf-8")
    assert picture.stat().st_size < 150_000


def test_the_guide_has_the_committed_figures():
    found, script = json.loads(COMMITTED.read_text(encoding="utf-8")), scripts.module("pages/write_sampling")
    text = script.table(found)
    assert text in GUIDE.read_text(encoding="utf-8")
    assert text.startswith("The share of one call")  # the mean of hundreds is more exact, and nobody makes them
    assert max(abs(row["drawn"] - row["integrated"]) for row in found["rows"]) < 0.02
    assert (GUIDE.parents[1] / "img" / "sampling.png").stat().st_size < 150_000


def test_the_points_are_those_of_sample():
    script = scripts.module("pages/write_sampling")
    kind, temperature = script.CASES[0]
    _, points = script.measure(kind, temperature, 2, 16, 0)
    x, y = torch.tensor(script.CENTER, dtype=torch.float64).expand(2, 2), torch.zeros(2, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    attack = kind(script.network(), eps=script.EPS, nb_iter=script.BURN_IN, generator=generator, speed="plain")
    samples = attack.sample(x, y, 16, temperature=temperature, thin=script.THIN)
    torch.testing.assert_close(points, samples[-4:].flatten(0, 1), rtol=0, atol=0)


def test_the_integral_is_the_volume_at_a_high_temperature():
    script = scripts.module("pages/write_sampling")
    for kind, _ in script.CASES:
        inside = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        inside = inside[kind.norm.size(inside - torch.tensor(script.CENTER)) <= script.EPS]
        volume = float((script.score(inside) > 0).double().mean())
        assert script.integrated(kind, 1e6) == pytest.approx(volume, abs=0.01)
