import pytest
import torch
from problems import LinearTwoClass

from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.figures import plots

LINF = Threat(norm="Linf", eps=0.1)


def linear_problem():
    model = LinearTwoClass((1, 2, 2))
    x = 0.5 + 0.1 * torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, Split(x, model(x).argmax(1))


def test_a_curve_falls_as_the_closed_form_says():
    model, split = linear_problem()
    radii = [0.0, 0.03, 0.06, 0.1]
    curve = plots.accuracy_curve("linear", model, split, LINF, radii)
    margin = (model(split.images)[:, 1] - model(split.images)[:, 0]).abs() / model.w.abs().sum()
    assert curve.accuracy == pytest.approx([float((margin > eps).double().mean()) for eps in radii])
    assert curve.accuracy[0] == 1.0


def test_a_portrait_shows_what_the_attack_did():
    model, split = linear_problem()
    margin = (model(split.images)[:, 1] - model(split.images)[:, 0]).abs()
    shown = plots.portrait(model, split, int(margin.argmin()), LINF)
    label = int(split.labels[margin.argmin()])
    assert shown.before[0] == label
    assert shown.after[0] == 1 - label
    assert 0.5 <= shown.after[1] <= 1
    assert (shown.adversarial - shown.clean).abs().max() == pytest.approx(0.1)


def test_figures_have_a_series_and_a_row_per_model(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    model, split = linear_problem()
    curves = [plots.accuracy_curve(name, model, split, LINF, [0.0, 0.1]) for name in ("a", "b")]
    plots.draw_curves(curves, LINF, "title", tmp_path / "c.png")
    rows = {name: [plots.portrait(model, split, i, LINF) for i in (0, 1)] for name in ("a", "b", "c")}
    plots.draw_portraits(rows, ["zero", "one"], "title", tmp_path / "p.png")
    axes = figures[0].axes[0]
    assert [line.get_label() for line in axes.lines if not line.get_label().startswith("_")] == ["a", "b"]
    assert len({line.get_linestyle() for line in axes.lines[:2]}) == 2  # told apart without colour
    assert axes.get_xlabel() == "eps (ℓ∞)"
    assert axes.get_ylabel() == "accuracy under attack (%)"
    assert len(figures[1].axes) == 3 * 6
    assert figures[1].axes[0].get_title().split()[0] in ("zero", "one")


def test_a_figure_is_written_whole(tmp_path):
    model, split = linear_problem()
    curve = plots.accuracy_curve("a", model, split, LINF, [0.0, 0.1])
    plots.draw_curves([curve], LINF, "title", tmp_path / "c.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["c.svg"]
    assert "</svg>" in (tmp_path / "c.svg").read_text()
