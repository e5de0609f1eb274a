from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF, SharedGenerator, gaussian
from atent_ext.data.datasets import Split
from atent_ext.training import augment, batches
from atent_ext.training.batches import Batches, Targets, share
from atent_ext.training.mixing import Mix


def split(count, channels=1, height=5, width=7):
    images = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count) % 3)


# ---- the share of a process


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_shares_are_contiguous_complete_and_even(processes):
    for total in range(1, 30):
        shares = [share(total, process, processes) for process in range(processes)]
        assert [row for rows in shares for row in rows] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len(shares[0]) > 0


def test_a_batch_must_have_an_example_for_each_process():
    message = r"batch_size is 2, to be shared out among 3 processes; make it at least 3, or start fewer processes"
    with pytest.raises(BadInput, match=message) as error:
        Batches(split(10), 2, processes=3)
    assert (error.value.code, error.value.field) == ("bad-value", "batch_size")
    assert len(Batches(split(10), 3, processes=3)) == 4


FOR_IMAGES = [name for name in get_args(augment.Name) if name != "none"]


@pytest.mark.parametrize(("field", "name"), [*(("augment", name) for name in FOR_IMAGES), ("mix", "cutmix")])
def test_what_needs_images_refuses_features(field, name):
    features = Split(torch.rand(10, 12), torch.arange(10) % 3)
    given = {"augment": ("none", name)} if field == "augment" else {"targets": Targets(3, Mix(name=name))}
    with pytest.raises(BadInput) as error:
        Batches(features, 5, **given)
    assert (error.value.code, error.value.field) == ("bad-shape", field)
    assert len(list(Batches(features, 5, targets=Targets(3, Mix(name="mixup"))).epoch(0))) == 2


# ---- the batches of an epoch


def test_an_epoch_has_every_example_once_and_a_smaller_last_batch():
    data = split(23)
    loader = Batches(data, 5)
    epoch = list(loader.epoch(1))
    assert [len(batch.labels) for batch in epoch] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    index = torch.cat([batch.index for batch in epoch])
    assert sorted(index.tolist()) == list(range(23))
    assert torch.equal(torch.cat([batch.images for batch in epoch]), data.images[index])
    assert torch.equal(torch.cat([batch.labels for batch in epoch]), data.labels[index])
    assert {batch.weight for batch in epoch} == {1.0}
    assert [batch.rows for batch in epoch] == [range(5)] * 4 + [range(3)]


CHANGES = [*augment.CHANGES, ("affine-sharp", "elastic", "cutout")]
MIXES = [None, Mix(name="mixup"), Mix(name="cutmix", share=0.5)]


@pytest.mark.parametrize("augment", CHANGES)
def test_an_epoch_depends_on_its_seed_alone(augment):
    loader, state = Batches(split(23), 5, augment), torch.get_rng_state()

    def epoch(seed):
        drawn = list(loader.epoch(seed))
        return torch.cat([batch.index for batch in drawn]), torch.cat([batch.images for batch in drawn])

    torch.manual_seed(5)
    first = epoch(1)
    torch.set_rng_state(state)
    again, other = epoch(1), epoch(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("augment", "mix"), [*((change, None) for change in CHANGES), *(("shift", mix) for mix in MIXES[1:])]
)
@pytest.mark.parametrize(("processes", "last"), [(2, 3), (3, 3), (4, 3), (5, 1)])
def test_the_processes_shares_make_up_the_batches_of_one(augment, mix, processes, last):
    data, options = split(20 + last), {"targets": Targets(3, mix, 0.1 if mix else 0.0)}
    alone = Batches(data, 5, augment, **options).epoch(4)
    several = [Batches(data, 5, augment, "cpu", place, processes, **options).epoch(4) for place in range(processes)]
    for whole, *parts in zip(alone, *several, strict=True):
        assert sum(part.weight for part in parts) == pytest.approx(processes)
        assert {part.total for part in parts} == {whole.total} == {len(whole.labels)}
        for part in parts:  # a borrowed example is the first of the batch
            rows = slice(part.rows.start, part.rows.stop)
            assert torch.equal(part.images, whole.images[rows])
            assert torch.equal(part.labels, whole.labels[rows])
            assert torch.equal(part.index, whole.index[rows])
        means = [part.weight * part.images.double().mean() for part in parts]
        assert float(sum(means) / processes) == pytest.approx(float(whole.images.double().mean()), rel=1e-12)


def test_a_process_without_an_example_borrows_the_first_with_weight_0():
    *_, last = Batches(split(11), 5, process=1, processes=2).epoch(0)
    assert (last.total, last.rows, last.weight, last.images.shape) == (1, range(1), 0.0, (1, 1, 5, 7))
    *_, first = Batches(split(11), 5, process=0, processes=2).epoch(0)
    assert (first.rows, first.weight) == (range(1), 2.0)


def test_images_stay_in_host_memory_where_a_gpu_has_no_room(monkeypatch):
    images, gpu = torch.zeros(1000, dtype=torch.uint8), torch.device("cuda:1")
    free = {"cuda:1": 4000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[str(device)], 10**12))
    assert batches._fits(images, gpu)
    free["cuda:1"] = 3999
    assert not batches._fits(images, gpu)
    assert batches._fits(images, torch.device("cpu"))


def test_batches_from_host_memory_are_the_same(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(len(self)) or self)
    expected = list(Batches(split(11), 4, "crop-flip").epoch(3))
    monkeypatch.setattr(batches, "_fits", lambda images, device: False)
    actual = list(Batches(split(11), 4, "crop-flip").epoch(3))
    assert pinned == [4, 4, 3]
    assert all(torch.equal(batch.images, other.images) for batch, other in zip(actual, expected, strict=True))


# ---- augmentation


def test_crop_flip_yields_shifted_or_mirrored_images():
    image = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    crops = [padded[:, i : i + 8, j : j + 6] for i in range(9) for j in range(9)]
    alike = Split(image.expand(300, 3, 8, 6), torch.full((300,), 5))
    (batch,) = Batches(alike, 300, "crop-flip").epoch(0)
    assert batch.labels.tolist() == [5] * 300
    mirrored, places = 0, set()
    for cropped in batch.images:
        plain = [k for k, crop in enumerate(crops) if torch.equal(cropped, crop)]
        flipped = [k for k, crop in enumerate(crops) if torch.equal(cropped.flip(-1), crop)]
        assert plain or flipped
        mirrored += not plain
        places.update(plain or flipped)
    assert 120 < mirrored < 180  # 150 on average, standard deviation 8.7
    assert len(places) > 70  # of 81; 300 draws meet 79 on average


def test_cropped_images_are_contiguous_float32():
    (batch,) = Batches(split(9, channels=3), 9, "crop-flip").epoch(0)
    assert batch.images.shape == (9, 3, 5, 7)
    assert batch.images.is_contiguous()
    assert batch.images.dtype is torch.float32


def test_each_batch_draws_other_crops():
    alike = Split(split(1).images.expand(6, 1, 5, 7), torch.zeros(6, dtype=torch.int64))
    first, second = Batches(alike, 3, "crop-flip").epoch(0)
    assert not torch.equal(first.images, second.images)


def test_each_augmentation_has_its_name_in_the_type_of_recipes():
    assert set(augment.CHANGES) == set(get_args(augment.Name))


def test_cutout_blackens_a_square_around_any_pixel():
    white = Split(torch.ones(400, 2, 8, 11), torch.zeros(400, dtype=torch.long))
    (batch,) = Batches(white, 400, "cutout").epoch(0)
    black = batch.images == 0
    assert torch.equal(black[:, 0], black[:, 1])
    rows, columns = black[:, 0].any(2), black[:, 0].any(1)
    assert torch.equal(black[:, 0], rows[:, :, None] & columns[:, None, :])
    assert set(rows.sum(1).tolist()) == set(columns.sum(1).tolist()) == {2, 3, 4}  # half of 8, cut off at the edges
    assert rows.float().mean(0).min() > 0.2


def test_affine_sharp_leaves_a_third_alone_and_moves_the_others_a_little():
    image = split(1, height=12, width=12).images
    (batch,) = Batches(
        Split(image.expand(600, 1, 12, 12), torch.zeros(600, dtype=torch.long)), 600, "affine-sharp"
    ).epoch(0)
    same = (batch.images == image).flatten(1).all(1)
    assert 160 < int(same.sum()) < 240  # 200 on average, standard deviation 11.5
    assert batch.images.min() == 0
    assert batch.images.max() == 1


def affine_sharp_matrices(monkeypatch, *parts):
    """The change of the sampled place for a step of a pixel right and down, with only these parts switched on."""
    for part in {"SHARP_TURN", "SHARP_STRETCH", "SHEAR", "SHIFT"} - set(parts):
        monkeypatch.setattr(augment, part, 0)
    monkeypatch.setattr(augment, "CONTRAST", 1)
    height, width = 21, 31
    x, y = ((torch.arange(size) + 0.5) / size for size in (width, height))
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    alike = Split(places.repeat(300, 1, 1, 1), torch.zeros(300, dtype=torch.long))
    (batch,) = Batches(alike, 300, "affine-sharp").epoch(0)
    pixels = batch.images.double() * torch.tensor([width, height])[:, None, None] - 0.5
    right, down = pixels[:, :, 10, 21] - pixels[:, :, 10, 9], pixels[:, :, 16, 15] - pixels[:, :, 4, 15]
    return torch.stack([right, down], 2) / 12  # over 12 pixels, since bicubic interpolation bends straight lines


def test_affine_sharp_turns_and_shears_by_what_it_says(monkeypatch):
    sheared = affine_sharp_matrices(monkeypatch, "SHEAR")
    assert sheared[:, 0, 1].abs().max().item() == pytest.approx(0.15, abs=0.01)
    torch.testing.assert_close(sheared[:, 0, 0], torch.ones(300).double(), atol=1e-2, rtol=0)
    monkeypatch.undo()
    turned = affine_sharp_matrices(monkeypatch, "SHARP_TURN")
    assert torch.atan2(turned[:, 1, 0], turned[:, 0, 0]).abs().max().item() == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(300).double(), atol=2e-2, rtol=0)


def test_elastic_bends_smoothly_and_without_a_bend_changes_nothing(monkeypatch):
    data = split(50, height=28, width=28)
    (batch,) = Batches(data, 50, "elastic").epoch(0)
    assert not torch.equal(batch.images, data.images[batch.index])
    # Values that grow evenly show how far each pixel has moved.
    slope = (torch.arange(28.0) / 28).expand(50, 1, 28, 28)
    (moved,) = Batches(Split(slope, torch.zeros(50, dtype=torch.long)), 50, "elastic").epoch(0)
    shifts = 28 * (moved.images - slope)[:, 0, 4:-4, 4:-4]
    assert 0.4 < shifts.std() < 0.8
    assert shifts.diff(dim=2).abs().max() < 1  # neighbours keep their order
    monkeypatch.setattr(augment, "BEND", 0)
    (still,) = Batches(data, 50, "elastic").epoch(0)
    torch.testing.assert_close(still.images, data.images[still.index], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_images_are(name):
    # Channel k of an image is white if its class is k, so that the mean of a channel is the weight of its class.
    labels = torch.arange(60) % 4
    images = F.one_hot(labels, 4).float()[:, :, None, None].expand(60, 4, 8, 8)
    shares = []
    for batch in Batches(Split(images, labels), 6, targets=Targets(4, Mix(name=name))).epoch(0):
        torch.testing.assert_close(batch.images.mean((2, 3)), batch.labels)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(6))
        own = batch.labels.gather(1, labels[batch.index][:, None])
        shares.append(float(own.min()))
        if name == "cutmix":
            assert set(batch.images.unique().tolist()) <= {0.0, 1.0}
    assert len(set(shares)) > 5


def test_a_share_of_the_batches_is_mixed():
    data = split(400)
    whole = list(Batches(data, 4, targets=Targets(3, Mix(name="mixup", share=0.3))).epoch(1))
    mixed = sum(not torch.equal(batch.images, data.images[batch.index]) for batch in whole)
    assert 15 < mixed < 45  # 30 on average, standard deviation 4.6


def test_smoothed_labels_give_torchs_loss():
    logits, (batch,) = (
        torch.randn(9, 3, generator=torch.Generator().manual_seed(0)),
        Batches(split(9), 9, targets=Targets(3, smoothing=0.3)).epoch(0),
    )
    expected = F.cross_entropy(logits, split(9).labels[batch.index], label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, batch.labels), expected)


def test_unknown_augmentation_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'crop-flip'") as error:
        Batches(split(4), 2, "cropflip")
    assert (error.value.code, error.value.field) == ("unknown-name", "augment")


# ---- draws by example


def shared(total, rows, seed=3):
    generator = SharedGenerator()
    generator.manual_seed(seed)
    generator.total, generator.rows = total, rows
    return generator


DRAWS = {
    "gaussian": gaussian,
    "uniform": lambda x, generator: LINF.random(x, 0.3, generator),
    "ball": lambda x, generator: L2.random(x, 0.3, generator),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_process_draws_its_rows_of_what_one_process_would(name):
    x = torch.zeros(11, 2, 4, dtype=torch.float64)
    alone = torch.Generator().manual_seed(3)
    expected = [DRAWS[name](x, alone) for _ in range(2)]
    for rows in (range(11), range(6), range(6, 11), range(4, 5)):
        generator = shared(11, rows)
        for whole in expected:  # the second draw continues after all rows of the first
            actual = DRAWS[name](x[rows.start : rows.stop], generator)
            assert torch.equal(actual, whole[rows.start : rows.stop])
            assert actual.abs().max() > 0


def test_a_shared_generator_draws_other_shapes_like_any_generator():
    for shape in ((5, 2), (7,), ()):
        parameter = torch.zeros(shape)
        expected = gaussian(parameter, torch.Generator().manual_seed(3))
        assert torch.equal(gaussian(parameter, shared(8, range(4))), expected)
    assert torch.equal(torch.rand(4, generator=shared(8, range(4))), torch.rand(4, generator=shared(8, range(2))))


def test_a_shared_generator_without_rows_is_an_ordinary_one():
    generator = SharedGenerator()
    generator.manual_seed(3)
    expected = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(gaussian(torch.zeros(4, 2), generator), expected)


def test_shift_moves_images_by_up_to_two_pixels_and_never_mirrors():
    image = torch.arange(1, 36.0).reshape(1, 1, 5, 7) / 35
    alike = Split(image.repeat(300, 1, 1, 1), torch.zeros(300, dtype=torch.long))
    (batch,) = Batches(alike, 300, "shift").epoch(0)
    padded = torch.nn.functional.pad(image[0], [2] * 4)
    crops = torch.stack([padded[:, top : top + 5, left : left + 7] for top in range(5) for left in range(5)])
    same = (batch.images[:, None] == crops[None]).flatten(2).all(2)
    assert same.sum(1).eq(1).all()
    assert same.any(0).all()  # 300 draws of 25 places


def sampled_from(monkeypatch, *parts):
    """How "affine" samples 300 images with only these parts of it switched on: the displacement of the centre in pixels
    (300, 2), and the change of the sampled place for a step of a pixel right and down (300, 2, 2). The value of each
    pixel of the images is its position."""
    for part in {"TURN", "STRETCH", "SHIFT"} - set(parts):
        monkeypatch.setattr(augment, part, 0)
    height, width = 21, 31
    x, y = ((torch.arange(size) + 0.5) / size for size in (width, height))
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    alike = Split(places.repeat(300, 1, 1, 1), torch.zeros(300, dtype=torch.long))
    (batch,) = Batches(alike, 300, "affine").epoch(0)
    pixels = batch.images.double() * torch.tensor([width, height])[:, None, None] - 0.5
    centre = pixels[:, :, 10, 15]
    steps = torch.stack([pixels[:, :, 10, 16] - centre, pixels[:, :, 11, 15] - centre], 2)
    return centre - torch.tensor([15, 10]), steps


def test_affine_turns_by_up_to_15_degrees(monkeypatch):
    moved, steps = sampled_from(monkeypatch, "TURN")
    angles = torch.atan2(steps[:, 1, 0], steps[:, 0, 0])
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], 1).reshape(-1, 2, 2)
    torch.testing.assert_close(steps, turns, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved, torch.zeros(300, 2).double(), atol=1e-4, rtol=0)
    assert 14 < angles.rad2deg().max() <= 15.01
    assert -15.01 <= angles.rad2deg().min() < -14


def test_affine_stretches_each_side_by_up_to_a_tenth(monkeypatch):
    moved, steps = sampled_from(monkeypatch, "STRETCH")
    sides = steps.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(steps, torch.diag_embed(sides), atol=1e-4, rtol=0)
    torch.testing.assert_close(moved, torch.zeros(300, 2).double(), atol=1e-4, rtol=0)
    assert (
        (sides.amin(0) >= 0.8999) & (sides.amin(0) < 0.91) & (sides.amax(0) > 1.09) & (sides.amax(0) <= 1.1001)
    ).all()
    assert (sides[:, 0] - sides[:, 1]).abs().max() > 0.1


def test_affine_moves_by_up_to_two_pixels(monkeypatch):
    moved, steps = sampled_from(monkeypatch, "SHIFT")
    torch.testing.assert_close(steps, torch.eye(2).double().expand(300, 2, 2), atol=1e-4, rtol=0)
    assert ((moved.amin(0) >= -2.001) & (moved.amin(0) < -1.9) & (moved.amax(0) > 1.9) & (moved.amax(0) <= 2.001)).all()


def test_affine_images_are_images_and_black_outside():
    white = Split(torch.ones(300, 1, 9, 9), torch.zeros(300, dtype=torch.long))
    (batch,) = Batches(white, 300, "affine").epoch(0)
    assert batch.images.min() == 0
    assert batch.images.max() <= 1
    assert (batch.images[:, 0, 4, 4] - 1).abs().max() < 1e-6
