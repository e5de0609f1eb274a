import json
from dataclasses import replace

import pytest
import torch
from problems import LinearTwoClass

from atent_ext.core.errors import BadInput
from atent_ext.core.norms import norm
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.experiments import drawing
from atent_ext.figures import density, history, landscape, plane, plots, probabilities
from atent_ext.models import weights
from atent_ext.subjects import run_folder
from atent_ext.training import recipes
from atent_ext.training.run_folder import RunFolder, build_model

THREATS = [Threat(norm="Linf", eps=0.1), Threat(norm="L2", eps=0.3)]
SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
QUICK = plane.Setting(updates=60, steps=5, step_size=0.5, batch_size=32)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear_problem():
    model = LinearTwoClass((1, 3, 3), seed=1)
    x = 0.5 + 0.05 * torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, Split(x, model(x).argmax(1))


def epochs(rates, chosen=()):
    shares = [round(0.1 * k, 1) for k in range(len(rates))]
    return [
        {
            "epoch": k + 1,
            "loss": 2.0 - share,
            "clean": share,
            "robust": share / 2,
            "lr": lr,
            "selected": k + 1 in chosen,
        }
        for k, (lr, share) in enumerate(zip(rates, shares, strict=True))
    ]


def make_run(path, name="digits-linf-pgd-at", overrides=(), scale=1.0):
    recipe = recipes.load(name, overrides)
    folder = RunFolder(path)
    images = datasets.load("digits")
    torch.manual_seed(3)
    with folder.claimed(recipe, resume=False, overwrite=False):
        weights.save_weights(build_model(recipe, images), folder.weights)
        folder.write_metrics(epochs([0.1, 0.1, 0.01], chosen=(1, 3)))
    return path


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "a"), make_run(tmp_path / "b", "digits-linf-trades")]


def refusal(call, *arguments, **options):
    with pytest.raises(BadInput) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def written_well(paths):
    for path in paths:
        assert path.suffix == ".json" or path.read_bytes().startswith(SIGNATURES[path.suffix]), path
    folder = paths[0].parent
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in paths)  # no temporary file is left


# Files


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_figure_is_written_twice_and_always_the_same(tmp_path, suffix):
    found = [("run", epochs([0.1, 0.01], (2,)))]
    first = plots.save(history.chart(found), tmp_path / "new" / f"one{suffix}")
    again = plots.save(history.chart(found), tmp_path / "other" / f"one{suffix}")
    written_well(first)
    assert [path.suffix for path in first] == list(dict.fromkeys([suffix, ".svg"]))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_another_suffix_is_refused(tmp_path):
    assert ".png, .pdf, .svg" in refusal(plots.save, None, tmp_path / "one.gif")
    assert list(tmp_path.iterdir()) == []


# History


def test_decays_are_the_epochs_after_which_the_rate_is_lower():
    found = epochs([0.1, 0.1, 0.01, 0.01, 0.001])
    assert history.decays(found) == [(3, 0.01), (5, 0.001)]
    assert history.decays(epochs([0.01, 0.1, 0.01])) == []  # a warm-up: no step schedule
    assert history.decays(epochs([1 / k for k in range(1, 9)])) == []
    assert history.decays(epochs([0.04, 0.03, 0.01, 0.0])) == []  # one cycle over four epochs
    assert history.decays(epochs([0.1, 0.01])) == [(2, 0.01)]


def test_the_chart_marks_decays_and_the_selected_epoch():
    figure = history.chart([("run", epochs([0.1, 0.1, 0.01, 0.01], (1, 3))), ("other", epochs([0.1, 0.2]))])
    accuracy, other, loss, _ = figure.axes
    for axes in (accuracy, loss):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "decay"] == [2.5]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "selected"] == [3]
    lines = {line.get_label(): line for line in accuracy.lines}
    assert list(lines["clean"].get_ydata()) == pytest.approx([0, 10, 20, 30])
    assert list(lines["robust (PGD)"].get_ydata()) == pytest.approx([0, 5, 10, 15])
    assert list(lines["selected epoch"].get_ydata()) == pytest.approx([20, 10])
    assert [text.get_text() for text in accuracy.texts] == ["lr 0.01"]
    assert list(loss.lines[0].get_ydata()) == pytest.approx([2, 1.9, 1.8, 1.7])
    assert accuracy.get_title() == "run\nselected: epoch 3"
    assert other.get_title() == "other\nlearning rate 0.1 to 0.2"
    assert not [line for line in other.lines if line.get_gid()]


def test_the_chart_has_the_proven_share_of_runs_that_measured_it(tmp_path):
    proven = [{**epoch, "proven": epoch["robust"] / 2} for epoch in epochs([0.1, 0.1, 0.1], (3,))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in proven))
    assert history.read(tmp_path) == proven
    figure = history.chart([("without", epochs([0.1])), ("with", history.read(tmp_path))])
    without, axes = figure.axes[:2]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["proven (interval bounds)"].get_ydata()) == pytest.approx([0, 2.5, 5])
    assert list(lines["selected epoch"].get_ydata()) == pytest.approx([20, 10, 5])
    assert "proven (interval bounds)" not in {line.get_label() for line in without.lines}
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(name for name in lines if name[0] != "_")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_legend_lies_inside_the_figure(count):
    proven = [{**epoch, "proven": epoch["robust"] / 2} for epoch in epochs([0.1, 0.1], (2,))]
    figure = history.chart([("run", proven)] * count)
    figure.canvas.draw()
    extent = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= extent.x0
    assert extent.x1 <= figure.bbox.x1


@pytest.mark.parametrize("line", ["{", "[1]", '{"epoch": 1}'])
def test_broken_metrics_are_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(epochs([0.1])[0]) + "\n" + line + "\n")
    assert "metrics.jsonl, line 2" in refusal(history.read, tmp_path)


def test_a_run_without_epochs_is_refused(tmp_path):
    assert "no metrics.jsonl" in refusal(history.read, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "is empty" in refusal(history.read, tmp_path)


# Landscape


@pytest.mark.parametrize("threat", THREATS)
def test_the_landscape_of_a_linear_model_is_the_closed_form(threat):
    model, split = linear_problem()
    u, v, reach = landscape.directions(model, split, 2, threat)
    found = landscape.around("linear", model, split, 2, threat, points=5)
    x, sign = split.images[2], 1 - 2 * int(split.labels[2])
    for row, b in enumerate(found.offsets):
        for column, a in enumerate(found.offsets):
            score = sign * ((x + a * u[0] + b * v[0]).flatten() @ model.w + model.b).detach()
            assert found.loss[row, column] == pytest.approx(float(torch.nn.functional.softplus(score)), rel=1e-5)
            assert found.margin[row, column] == pytest.approx(float(score), rel=1e-5, abs=1e-6)
    assert found.offsets.tolist() == pytest.approx([threat.eps * k for k in (-2, -1, 0, 1, 2)])
    assert reach == pytest.approx(threat.eps, rel=1e-5)
    worst = float(model.worst_loss(split.images[2:3], split.labels[2:3], threat.norm, threat.eps)[0])
    assert float(found.loss[2, 3]) == pytest.approx(worst, rel=0.01)  # one eps along u: the adversary


@pytest.mark.parametrize("threat", THREATS)
def test_the_directions_have_size_one_and_suit_the_norm(threat):
    model, split = linear_problem()
    u, v, _ = landscape.directions(model, split, 0, threat)
    assert norm(threat.norm).size(torch.cat([u, v])).tolist() == pytest.approx([1, 1])
    if threat.norm == "L2":
        assert float((u * v).sum()) == pytest.approx(0, abs=1e-12)
    else:
        assert v.abs().unique().tolist() == [1]
    assert torch.equal(v, landscape.directions(model, split, 0, threat)[1])
    assert not torch.equal(v, landscape.directions(model, split, 0, threat, seed=1)[1])


def test_the_ball_of_the_l2_landscape_is_a_circle():
    model, split = linear_problem()
    found = landscape.around("linear", model, split, 0, THREATS[1], points=9)
    b, a = torch.meshgrid(found.offsets, found.offsets, indexing="ij")
    assert torch.allclose(found.size, (a**2 + b**2).sqrt())


def test_a_flat_landscape_is_drawn_without_contours(tmp_path):
    model, split = linear_problem()
    found = landscape.around("linear", model, split, 0, THREATS[0], points=5)
    flat = landscape.Landscape(**{**vars(found), "loss": torch.ones(5, 5), "margin": -torch.ones(5, 5)})
    figure = landscape.chart([found, flat])
    assert [axes.get_title().split("\n")[1] for axes in figure.axes] == ["cross-entropy (nats), eps 0.1"] * 2
    assert len(figure.axes[0].collections) > len(figure.axes[1].collections) == 1  # the ball alone
    written_well(landscape.draw([found, flat], tmp_path / "l.png"))


def test_what_has_no_landscape_is_refused():
    model, split = linear_problem()
    assert "index is 6" in refusal(landscape.directions, model, split, 6, THREATS[0])
    assert "eps is 0" in refusal(landscape.directions, model, split, 0, Threat(norm="Linf", eps=0))


# Probabilities


def test_probabilities_are_those_of_the_closed_form_adversary(tmp_path):
    model, split = linear_problem()
    row = probabilities.attacked("linear", model, split, 1, THREATS[0])
    worst = model.worst_loss(split.images[1:2], split.labels[1:2], "Linf", 0.1)
    assert row.label == int(split.labels[1])
    assert row.probabilities.sum(1).tolist() == pytest.approx([1, 1])
    assert float(row.probabilities[1, row.label]) == pytest.approx(float((-worst).exp()[0]), rel=1e-5)
    assert "index is -1" in refusal(probabilities.attacked, "linear", model, split, -1, THREATS[0])

    figure = probabilities.chart([row, row], ["zero", "one"])
    bars = figure.axes[2]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(row.probabilities.flatten().tolist())
    labels = bars.get_xticklabels()
    assert labels[row.label].get_text() == f"[{('zero', 'one')[row.label]}]"
    assert [label.get_fontweight() == "bold" for label in labels] == [k == row.label for k in (0, 1)]
    assert len(figure.axes) == 6
    written_well(probabilities.draw([row, row], ["zero", "one"], tmp_path / "p.pdf"))


# Density


def test_the_chains_have_the_mean_and_variance_of_the_density():
    setting = density.Setting()
    found = density.report(setting, density.samples(setting, seed=1), seed=1)
    exact, sampled = found["quadrature"], found["samples"]
    assert found["n"] == setting.chains
    assert sampled["mean"] == pytest.approx(exact["mean"], rel=0.02)
    assert sampled["variance"] == pytest.approx(exact["variance"], rel=0.03)


def test_on_a_flat_loss_the_density_is_the_gaussian_of_the_pull(monkeypatch):
    monkeypatch.setattr(density, "bumpy", lambda x: 0.0 * x)
    setting = density.Setting(x=-0.7, gamma=2.5, noise=0.6)
    found = density.quadrature(setting)
    assert found.mean == pytest.approx(-0.7)
    assert found.variance == pytest.approx(0.6**2 / 2.5)
    assert float(torch.trapezoid(found.values, found.grid)) == pytest.approx(1)


def test_the_density_is_drawn_over_the_samples(tmp_path):
    setting = density.Setting(chains=50, steps=3)
    found = density.samples(setting)
    assert found.shape == (50,)
    assert torch.equal(found, density.samples(setting))
    above, below = density.chart(setting, found).axes
    assert (above.get_ylabel(), below.get_ylabel()) == ("loss L(x')", "probability density")
    written_well(density.draw(setting, found, tmp_path / "d.png"))


def test_a_density_needs_a_pull_and_noise():
    assert "gamma is 0" in refusal(density.quadrature, density.Setting(gamma=0))
    assert "noise is 0" in refusal(density.quadrature, density.Setting(noise=0))


# Plane


def blobs(n=60):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    centres = torch.tensor([[-5.0, -4.0], [5.0, 4.0]])
    return Split(centres[labels] + torch.randn(n, 2, generator=generator), labels)


@pytest.mark.parametrize("name", ["SGD", "PGD-AT", "TRADES", "ATENT"])
def test_a_plane_net_separates_what_can_be_separated(name):
    points = blobs()
    net = plane.train(QUICK.objectives[name], points, QUICK)
    assert (net(points.images).argmax(1) == points.labels).all()
    assert not net.training
    again = plane.train(QUICK.objectives[name], points, QUICK)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_the_plane_has_the_setting_of_the_paper():
    setting = plane.Setting()
    for name in ("PGD-AT", "TRADES", "ATENT"):
        kernel = setting.objectives[name].kernel
        assert (kernel.eps, kernel.steps, kernel.step_size, kernel.box) == (1, 40, 0.1, (-10, 10))
    assert setting.objectives["TRADES"].beta == 8
    modules = list(plane.PlaneNet().layers)
    assert [type(m).__name__ for m in modules if list(m.parameters())] == ["Conv1d", "Linear", "Linear"]


def test_robust_accuracy_counts_the_points_near_the_boundary(monkeypatch):
    class HalfPlane(torch.nn.Module):
        def forward(self, x):
            return torch.stack([-x[:, 0], x[:, 0]], 1)

    x = torch.tensor([[-3.0, 0], [-0.5, 1], [0.5, 2], [1.5, 3], [-2.0, 4]])
    points = Split(x, torch.tensor([0, 0, 1, 1, 1]))
    assert plane._robust(HalfPlane(), points, plane.Setting(), 0).tolist() == [True, False, False, True, False]


def test_two_digits_are_embedded_into_the_box():
    pair = plane.two_classes("digits", 15)
    assert pair.classes == ("5", "8")
    assert pair.labels.tolist() == [0] * 15 + [1] * 15
    points = plane.embed(pair, seed=2)
    assert points.images.shape == (30, 2)
    assert points.images.abs().max() == pytest.approx(10)
    extent = points.images.amax(0) - points.images.amin(0)
    assert extent.max() == pytest.approx(20)
    assert torch.equal(points.images, plane.embed(pair, seed=2).images)


def test_a_study_reports_and_draws_what_it_measured(tmp_path):
    pair = plane.two_classes("digits", 20)
    setting = plane.Setting(updates=20, steps=3, step_size=0.4)
    found = plane.study(pair, setting, seed=4)
    report = json.loads(json.dumps(found.report))
    assert (report["n_train"], report["n_test"], report["seed"]) == (28, 12, 4)
    assert found.held_out.labels.bincount().tolist() == [6, 6]
    assert list(report["methods"]) == ["SGD", "PGD-AT", "TRADES", "ATENT"]
    for name, numbers in report["methods"].items():
        assert 0 <= numbers["robust"]["accuracy"] <= numbers["clean"]["accuracy"] <= 1
        assert numbers["robust"]["correct"] == int(found.robust[name].sum())
    figure = plane.chart(found)
    first = report["methods"]["SGD"]
    title = f"SGD: clean {100 * first['clean']['accuracy']:.1f} %, robust {100 * first['robust']['accuracy']:.1f} %"
    assert figure.axes[0].get_title() == title
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 12
    written_well(plane.draw(found, tmp_path / "plane.png"))


def test_a_net_of_one_answer_colours_the_whole_panel():
    axes = plots._figure(3, 3)[1]
    net = plane.PlaneNet()
    torch.nn.init.zeros_(net.layers[-1].weight)
    net.layers[-1].bias.data = torch.tensor([0.0, 1.0])
    plane._regions(axes, net, (-10, 10), points=5)
    assert axes.get_facecolor()[0] == pytest.approx(0.87)


def test_what_has_no_plane_is_refused():
    assert "cifar10" in refusal(plane.two_classes, "cifar10", 10)
    assert "n is 0" in refusal(plane.two_classes, "digits", 0)
    assert "at least 20" in refusal(plane.embed, plane.two_classes("digits", 5))


# By name


@pytest.mark.parametrize("kind", ["history", "landscape", "probabilities", "curve"])
def test_runs_are_drawn_by_name(tmp_path, runs, kind):
    out = tmp_path / "figures" / f"{kind}.png"
    paths = drawing.draw(kind, runs, out, n=5, index=3)
    assert paths == [out, out.with_suffix(".svg")]
    written_well(paths)


def test_figures_without_runs_are_drawn_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(plane, "Setting", lambda **_: plane.QUICK)
    monkeypatch.setattr(plane, "QUICK", QUICK, raising=False)
    short = density.Setting(chains=20, steps=2)
    monkeypatch.setattr(density, "Setting", lambda: short)
    for kind in ("plane", "density"):
        paths = drawing.draw(kind, [], tmp_path / kind / "one.png", n=12)
        assert [path.name for path in paths] == ["one.png", "one.svg", "one.json"]
        written_well(paths)
        assert json.loads(paths[2].read_text())["figure"] == kind


def test_a_figures_numbers_replace_no_scores(tmp_path, monkeypatch):
    short = density.Setting(chains=20, steps=2)
    monkeypatch.setattr(density, "Setting", lambda: short)
    numbers, out = tmp_path / "one.json", tmp_path / "one.png"
    for text in ('{"results": []}', '{"figure": "plane"}', "[]", "mine"):
        numbers.write_text(text)
        said = refusal(drawing.draw, "density", [], out)
        assert (
            said == f"{numbers} exists and holds something else than the numbers of a figure 'density', "
            "which are written there; name another --out"
        )
        assert numbers.read_text() == text
        assert not out.exists()
    numbers.unlink()
    for seed in (0, 1):  # those of an earlier drawing are replaced
        drawing.draw("density", [], out, seed=seed)
        assert json.loads(numbers.read_text())["seed"] == seed


def test_every_kind_is_described_and_drawn():
    assert list(drawing.KINDS) == list(drawing._DRAWERS)
    assert all("\n" not in text for text in drawing.KINDS.values())


def test_runs_of_one_recipe_are_told_apart_by_folder(tmp_path):
    same = [make_run(tmp_path / name) for name in ("a", "b")]
    assert drawing._names(same) == ["a", "b"]
    assert drawing._names(same[:1]) == ["digits-linf-pgd-at"]
    assert drawing._names([same[0], same[0]]) == [str(same[0])] * 2


@pytest.mark.parametrize("kind", ["history", "landscape", "probabilities", "curve"])
def test_a_missing_run_is_named(tmp_path, kind):
    assert "nothing holds no run" in refusal(drawing.draw, kind, [tmp_path / "nothing"], tmp_path / "one.png")
    assert "needs at least one" in refusal(drawing.draw, kind, [], tmp_path / "one.png")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, runs):
    out = tmp_path / "figures" / "one.png"
    assert "did you mean 'landscape'" in refusal(drawing.draw, "landscap", runs, out)
    assert "takes none" in refusal(drawing.draw, "plane", runs, out)
    assert "seed is -1" in refusal(drawing.draw, "density", [], out, seed=-1)
    assert "n is 0" in refusal(drawing.draw, "curve", runs, out, n=0)
    assert "index is 360" in refusal(drawing.draw, "landscape", runs, out, index=360)
    assert "ends in" in refusal(drawing.draw, "history", runs, out.with_suffix(".txt"))
    other = make_run(tmp_path / "c", overrides=["threat.eps=0.2"])
    assert "different threat models" in refusal(drawing.draw, "curve", [runs[1], other], out)
    still = make_run(tmp_path / "d", overrides=["threat.eps=0"])
    assert "eps is 0" in refusal(drawing.draw, "curve", [still], out)
    assert not out.parent.exists()


def test_runs_on_different_data_are_not_drawn_together(tmp_path, runs, monkeypatch):
    whole = run_folder.from_run

    def other(path, root=None):
        found = whole(path, root)
        return replace(found, about=found.about.model_copy(update={"data": path.name}))

    monkeypatch.setattr(run_folder, "from_run", other)
    assert "data sets a, b" in refusal(drawing.draw, "probabilities", runs, tmp_path / "one.png")
