"""Images and masks move as one, under a seed of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.masks import folders
from mobilevit.data.formats.masks.values import MaskFiles, class_values
from mobilevit.data.images import ImageError
from mobilevit.data.loader import EpochLoader
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import (
    EpochOrder,
    MultiScaleBatchSampler,
    MultiScaleSchedule,
    SampleKey,
)
from mobilevit.models.config import ChannelOrder, Preprocessing
from mobilevit.tasks.dataset import EvaluationSet
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.options import SegmentationOptions
from mobilevit.tasks.segmentation.transforms import (
    SegmentationAugment,
    SegmentationSet,
    SegmentationTransform,
)
from mobilevit.utils.random import seeded

STILL = {"scale": (1.0, 1.0), "flip": 0.0, "photometric": 0.0}


@pytest.fixture
def samples(tmp_path: Path) -> MaskSamples:
    """Six images of noise, 40 x 50 and 60 x 30, and masks of the values 0 to 3, 11 ignored."""
    draw = np.random.default_rng(0)
    for number in range(6):
        shape = (40, 50) if number % 2 else (60, 30)
        Image.fromarray(draw.integers(0, 255, (*shape, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        mask = draw.choice(np.array([0, 1, 2, 3, 11], np.uint8), shape)
        Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
    classes, values = class_values(dict(enumerate("abcd")), {11})
    builder = DatasetBuilder(tmp_path, folders.FORMAT)
    for number in range(6):
        builder.add_image(tmp_path / f"{number}.png")
    files = [tmp_path / f"mask{number}.png" for number in range(6)]
    masks = MaskFiles(values=values, ignore=11, files=files)
    return MaskSamples.from_dataset(builder.build(classes, masks=masks))


def transform(**options: object) -> SegmentationTransform:
    return SegmentationTransform(SegmentationAugment(**options), Preprocessing())  # type: ignore[arg-type]


def training_set(
    samples: MaskSamples, seed: int = 0, order: ChannelOrder = "rgb", **options: object
) -> SegmentationSet:
    augment = SegmentationAugment(**options)  # type: ignore[arg-type]
    preprocessing = Preprocessing(channel_order=order)
    return SegmentationSet(samples, preprocessing, SegmentationOptions(augment=augment), seed=seed)


def keys(*indices: int, height: int = 32, width: int = 32, epoch: int = 0) -> list[SampleKey]:
    return [SampleKey(index, height, width, epoch) for index in indices]


# One movement


@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_masks_hold_what_they_held(rotate: float, dtype: type) -> None:  # case A29
    mask = np.random.default_rng(0).choice(np.array([0, 5, 255], dtype), (7, 11))
    image = Image.new("RGB", (11, 7))
    for seed in range(20):
        with seeded(seed):
            turned = transform(rotate=rotate)(image, mask, 20, 33)[1]
        assert turned.shape == (20, 33) and turned.dtype == torch.int64
        assert set(turned.unique().tolist()) <= {0, 5, 255}


def corners(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """A black image with a white block in each corner, and a mask that marks them 1 to 4."""
    mask = np.zeros((height, width), np.uint8)
    for place, (top, left) in enumerate([(0, 0), (0, -8), (-8, 0), (-8, -8)], start=1):
        mask[top : top + 8 or None, left : left + 8 or None] = place
    return Image.fromarray(np.stack([np.uint8(mask > 0) * 255] * 3, 2)), mask


def grown(marked: torch.Tensor, pixels: int) -> torch.Tensor:
    """bool [H, W], larger by so many pixels in every direction."""
    side = 2 * pixels + 1
    return F.max_pool2d(marked[None, None].float(), side, stride=1, padding=pixels)[0, 0] > 0


def centre(weights: torch.Tensor) -> torch.Tensor:
    """The centre of gravity of [H, W]: row, column."""
    rows, columns = torch.meshgrid(*map(torch.arange, weights.shape), indexing="ij")
    return torch.stack([(weights * at).sum() / weights.sum() for at in (rows, columns)])


@pytest.mark.parametrize("size", [(70, 110), (130, 120)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rotate", [0.0, 30.0])
def test_markers_of_image_and_mask_coincide(
    size: tuple[int, int], interpolation: str, rotate: float
) -> None:  # case A29
    img, mask = corners(70, 90)
    options = SegmentationAugment(rotate=rotate, photometric=0.0, scale=(0.5, 1.2))
    move = SegmentationTransform(options, Preprocessing(interpolation=interpolation))  # type: ignore[arg-type]
    seen = 0
    for seed in range(12):
        with seeded(seed):
            image, moved = move(img, mask, *size)
        assert image.shape == (3, *size) and moved.shape == size
        for place in range(1, 5):
            around = grown(moved == place, 4)
            whole = not (around[[0, -1]].any() or around[:, [0, -1]].any())
            if (moved == place).sum() > 20 and whole:  # not cut by the crop, nor nearly turned out
                seen += 1
                white = centre(image[0] * around)
                assert (white - centre((moved == place).float())).abs().max() < 1
        if not rotate:  # turned corners become round in the image
            white = image[0] > 0.5
            marked = (moved > 0) & (moved < 5)
            assert not (white & ~grown(marked, 1)).any() and not (marked & ~grown(white, 1)).any()
    assert seen > 1


def test_a_image_decoded_smaller_moves_as_the_whole() -> None:
    image, mask = corners(64, 96)
    with seeded(1):
        _, moved = transform(**STILL)(image, mask, 32, 48)
    with seeded(1):
        small, same = transform(**STILL)(image.resize((48, 32)), mask, 32, 48)
    assert torch.equal(moved, same)
    assert torch.equal(small[0] > 0.5, moved > 0)
    assert transform(scale=(0.5, 1.5)).decoded_size(100, 60) == (90, 90)


def test_the_scale_is_that_of_the_short_side() -> None:
    mask = np.arange(40, dtype=np.uint8)[:, None].repeat(80, 1)
    image = Image.fromarray(np.stack([mask] * 3, 2))
    options = {**STILL, "scale": (2.0, 2.0)}
    moved = transform(**options)(image, mask, 20, 30)[1]  # 40 x 80, as it is
    assert torch.equal(moved[:, 0] - moved[0, 0], torch.arange(20))
    with seeded(0):
        sides = [float(transform()._resized(40, 80, 20, 30)[0]) for _ in range(300)]
    assert min(sides) == 10 and max(sides) == 40


def test_what_is_too_small_is_filled_with_black_and_ignored() -> None:
    mask = np.full((10, 10), 3, np.uint8)
    img = Image.new("RGB", (10, 10), "white")
    places = set()
    for seed in range(20):
        with seeded(seed):
            image, moved = transform(**STILL)(img, mask, 10, 25, ignore=7)
        assert (moved == 3).sum() == 100 and (moved == 7).sum() == 150
        assert torch.equal(image[0] == 1, moved == 3) and torch.equal(image[0] == 0, moved == 7)
        places.add(int(moved[0].ne(7).nonzero()[0]))
    assert len(places) > 5
    with seeded(0):
        image, moved = transform(**STILL, rotate=45.0)(img, mask, 40, 40, ignore=7)
    assert 0 < (moved == 7).sum() < 800 and (image[0][moved == 7] < 1).all()


def test_strips_stay_small() -> None:
    image, moved = transform()(Image.new("RGB", (3000, 1)), np.zeros((1, 3000), np.uint8), 64, 64)
    assert image.shape == (3, 64, 64) and set(moved.unique().tolist()) == {0, 255}


def test_a_flip_is_of_both() -> None:
    image, mask = corners(64, 64)
    mask[:, :32] = 0
    original = transform(**STILL)(image, mask, 64, 64)
    flipped = transform(**{**STILL, "flip": 1.0})(image, mask, 64, 64)
    assert torch.equal(flipped[0], original[0].flip(-1))
    assert torch.equal(flipped[1], original[1].flip(-1)) and not torch.equal(
        *[original[1], flipped[1]]
    )


def test_no_class_takes_more_of_a_crop_than_its_share() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[80:] = 1
    mask[:, 90:] = 255
    image = Image.new("RGB", (100, 100))

    def mixed(**options: object) -> int:
        found = 0
        for seed in range(100):
            with seeded(seed):
                moved = transform(**STILL, **options)._corner(mask, 30, 30, 255)
            window = mask[moved[0] : moved[0] + 30, moved[1] : moved[1] + 30]
            counts = np.bincount(window.ravel(), minlength=256)[:2]
            found += counts.max() <= 0.75 * counts.sum()
        return found

    assert mixed() < 40 and mixed(crop_max_share=0.75) > 75
    few = np.full_like(mask, 255)  # ignored pixels do not count, however many they are
    few[::5, ::2], few[::5, 1::2] = 0, 1
    for seed in range(20):
        with seeded(seed):
            first = transform(**STILL)._corner(few, 30, 30, 255)
        with seeded(seed):
            assert transform(**STILL, crop_max_share=0.75)._corner(few, 30, 30, 255) == first
    uniform = transform(**STILL, crop_max_share=0.5)(image, np.zeros_like(mask), 100, 100)
    assert uniform[1].shape == (100, 100)  # where there is no better one, it goes on


@pytest.mark.parametrize("option", [{"photometric": 1.0}, {"blur": 1.0}])
def test_colours_change_in_the_image_alone(samples: MaskSamples, option: dict[str, float]) -> None:
    original = training_set(samples, **STILL).__getitems__(keys(1, 3))
    changed = training_set(samples, **{**STILL, **option}).__getitems__(keys(1, 3))
    assert not torch.allclose(original[0], changed[0], atol=0.01)
    assert torch.equal(original[1], changed[1])
    assert changed[0].min() >= 0 and changed[0].max() <= 1


def test_values_are_those_of_the_weights(samples: MaskSamples) -> None:
    original = training_set(samples, **STILL)
    other = training_set(samples, order="bgr", **STILL)
    assert torch.equal(other[keys(1)[0]][0], original[keys(1)[0]][0].flip(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"scale": (1.0, float("inf"))},
        {"flip": 1.1},
        {"rotate": -1.0},
        {"photometric": -0.1},
        {"blur": 2.0},
        {"crop_max_share": 0.0},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SegmentationAugment(**wrong)  # type: ignore[arg-type]


# Data sets


def test_a_batch_has_its_keys_size(samples: MaskSamples) -> None:
    images, masks = training_set(samples).__getitems__(keys(0, 3, 5, height=24, width=40))
    assert images.shape == (3, 3, 24, 40) and images.dtype == torch.float32
    assert masks.shape == (3, 24, 40) and masks.dtype == torch.int64
    assert set(masks.unique().tolist()) <= {0, 1, 2, 3, 11}
    assert len(training_set(samples)) == 6


def test_randomness_is_a_function_of_seed_epoch_and_sample(samples: MaskSamples) -> None:
    one = training_set(samples, rotate=10.0, blur=0.5)
    torch.manual_seed(1)
    images, masks = one.__getitems__(keys(0, 1))
    expected = torch.rand(3)
    torch.manual_seed(1)
    again = one.__getitems__(keys(0, 1))
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert torch.equal(torch.rand(3), expected)  # the caller's generator is left alone
    assert torch.equal(images[1], one[keys(1)[0]][0])  # whatever the batch around it
    assert not torch.equal(images, one.__getitems__(keys(0, 1, epoch=1))[0])
    other = training_set(samples, seed=1, rotate=10.0, blur=0.5)
    assert not torch.equal(images, other.__getitems__(keys(0, 1))[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_takes_it(samples: MaskSamples, workers: int) -> None:
    schedule = MultiScaleSchedule(samples=6, sizes=(32, 48), base_size=32, base_batch=3)
    batches = MultiScaleBatchSampler(EpochOrder(6), schedule)
    loader = EpochLoader(training_set(samples), batches, workers=workers)
    shapes = [(tuple(images.shape[2:]), tuple(masks.shape[1:])) for images, masks in loader]
    assert shapes and all(image == mask for image, mask in shapes)
    Path(samples.mask_name(2)).write_bytes(b"no image")
    with pytest.raises(ImageError, match="mask2"):
        list(loader)


def test_evaluation_stacks_images_of_one_shape_and_keeps_masks(samples: MaskSamples) -> None:
    preprocessing = Preprocessing(resize_mode="shortest_edge", resize=32, crop=32)
    data = EvaluationSet(samples, preprocessing)
    batches = data.__getitems__([5, 0, 2, 1])
    assert len(data) == 6 and data.__getitems__([]) == []
    assert [batch.indices for batch in batches] == [[5, 1], [0, 2]]
    shapes = [tuple(batch.images.shape) for batch in batches]
    assert shapes == [(2, 3, 32, 32), (2, 3, 64, 32)]
    for batch in batches:
        for index, size, mask in zip(batch.indices, batch.sizes, batch.targets, strict=True):
            assert mask.dtype == torch.uint8 and mask.shape == size
            np.testing.assert_array_equal(mask.numpy(), samples.mask(index))


def test_camvid_is_trained_on(shared: Path) -> None:
    data = open_splits(MaskSamples, DataOptions(root=str(shared / "data" / "camvid"), ignore=11))
    images, masks = training_set(data.train, crop_max_share=0.75).__getitems__(  # type: ignore[arg-type]
        keys(*range(8), height=256, width=256)
    )
    assert images.shape == (8, 3, 256, 256) and set(masks.unique().tolist()) <= set(range(12))
    preprocessing = Preprocessing(resize_mode="shortest_edge", resize=352, crop=352)
    (batch,) = EvaluationSet(data.val, preprocessing).__getitems__([0])
    assert batch.images.shape == (1, 3, 352, 448)
    assert batch.sizes == [(360, 480)] and batch.targets[0].shape == (360, 480)
