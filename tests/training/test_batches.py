import pytest
import torch

from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2, LINF, SharedGenerator, gaussian
from atent_ext.data.datasets import Split
from atent_ext.training import batches
from atent_ext.training.batches import Batches, share


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


@pytest.mark.parametrize("augment", ["none", "crop-flip", "shift", "affine"])
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


@pytest.mark.parametrize("augment", ["none", "crop-flip", "shift", "affine"])
@pytest.mark.parametrize(("processes", "last"), [(2, 3), (3, 3), (4, 3), (5, 1)])
def test_the_processes_shares_make_up_the_batches_of_one(augment, processes, last):
    data = split(20 + last)
    alone = Batches(data, 5, augment).epoch(4)
    several = [Batches(data, 5, augment, "cpu", process, processes).epoch(4) for process in range(processes)]
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
        monkeypatch.setattr(batches, part, 0)
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
