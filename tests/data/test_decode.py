"""Regions of an image: torchvision's pixels with exact decoding, close to them with fast."""

from __future__ import annotations

import runpy
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data import decode as decoding
from mobilevit.data.decode import Region, open_decodable, open_reduced
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import (
    AugmentOptions,
    ClassificationSet,
    TrainTransform,
)
from mobilevit.tasks.detection.dataset import Annotation
from mobilevit.tasks.detection.options import DetectionOptions
from mobilevit.tasks.detection.transforms import BoxAugmentOptions, DetectionSet
from mobilevit.utils.random import seeded
from tests.data.factories import encode

BILINEAR, BICUBIC = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC
FULL_SIZE = 1
"""Largest difference of a pixel, in steps of 1/255, of a JPEG decoded at full size."""
BICUBIC_MEAN = 0.5
"""Its mean with bicubic interpolation, which Pillow rounds and clips in between."""
REDUCED = 10.0
"""Mean difference of a photo that is decoded smaller."""


def photo(width: int = 640, height: int = 427) -> Image.Image:
    image = Image.fromarray(load_sample_image("china.jpg"))
    return image if image.size == (width, height) else image.resize((width, height))


def region_of(
    data: Any, region: Region, size: tuple[int, int], decode: Any = "fast", mode: Any = BILINEAR
) -> Tensor:
    with open_decodable(data, decode=decode) as opened:
        return opened.pixels(region, *size, mode)


def expected(data: Any, region: Region, size: tuple[int, int], mode: Any = BILINEAR) -> Tensor:
    return TF.pil_to_tensor(TF.resized_crop(open_image(data), *region, list(size), mode))


def steps(a: Tensor, b: Tensor) -> Tensor:
    assert a.shape == b.shape and a.dtype == b.dtype == torch.uint8
    return (a.int() - b.int()).abs()


@st.composite
def regions(draw: st.DrawFn, height: int, width: int) -> Region:
    tall, wide = draw(st.integers(height // 4, height)), draw(st.integers(width // 4, width))
    return Region(
        draw(st.integers(0, height - tall)), draw(st.integers(0, width - wide)), tall, wide
    )


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_pixels_stay_within_the_stated_bound(data: st.DataObject) -> None:
    width, height = data.draw(st.sampled_from([(640, 427), (427, 640), (333, 501), (1600, 1067)]))
    orientation = data.draw(st.integers(1, 8))
    colours = data.draw(st.sampled_from(["RGB", "RGB", "L", "CMYK"]))
    options = {
        "quality": data.draw(st.sampled_from([75, 92])),
        "progressive": data.draw(st.booleans()),
    }
    if colours == "RGB":
        options["subsampling"] = data.draw(st.sampled_from([0, 1, 2]))
    file = encode(photo(width, height).convert(colours), orientation=orientation, **options)
    upright = (height, width) if orientation < 5 else (width, height)
    region = data.draw(regions(*upright))
    size = (data.draw(st.integers(16, 200)), data.draw(st.integers(16, 200)))
    mode = data.draw(st.sampled_from([BILINEAR, BICUBIC]))
    want = expected(file, region, size, mode)
    assert torch.equal(region_of(file, region, size, "exact", mode), want)
    apart = steps(region_of(file, region, size, "fast", mode), want)
    ratio = min(region.height / size[0], region.width / size[1])
    if ratio < 2 or colours == "CMYK":  # which is always decoded at full size
        assert apart.max() <= FULL_SIZE if mode == BILINEAR else apart.float().mean() < BICUBIC_MEAN
    else:
        assert apart.float().mean() <= REDUCED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_are_those_of_the_upright_image(orientation: int) -> None:
    file = encode(photo(), orientation=orientation)
    height, width = (427, 640) if orientation < 5 else (640, 427)
    with open_decodable(file, decode="fast") as opened:
        assert (opened.height, opened.width) == (height, width)
    region = Region(30, 50, height - 100, width - 60)
    for size in ((70, 40), (300, 350)):
        apart = steps(region_of(file, region, size), expected(file, region, size)).float()
        assert apart.mean() <= REDUCED


@pytest.mark.parametrize("package", ["simplejpeg", "pillow"])
@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_a_truncated_file_is_refused_wherever_the_region_is(
    decode: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "pillow":
        monkeypatch.setattr(decoding, "simplejpeg", None)
    complete = encode(photo(1600, 1067), quality=90)
    for size in ((100, 100), (400, 600)):
        with pytest.raises(ImageError, match="truncated"):
            region_of(complete[: len(complete) * 7 // 10], Region(0, 0, 400, 600), size, decode)


def test_simplejpeg_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        encode(
            photo(640 - odd, 427 - odd).convert(mode),
            orientation=1 + 5 * odd,
            progressive=bool(odd),
        )
        for odd in (0, 1)
        for mode in ("RGB", "L", "CMYK")
    ]
    region = Region(20, 30, 390, 380)
    sizes = [(390, 380), (256, 300), (190, 150), (90, 60), (40, 40)]  # decoded at 1 to 1/8
    cases = [(file, size) for file in files for size in sizes]
    with_it = [region_of(file, region, size) for file, size in cases]
    monkeypatch.setattr(decoding, "simplejpeg", None)
    for (file, size), pixels in zip(cases, with_it, strict=True):
        assert torch.equal(region_of(file, region, size), pixels)


def test_a_broken_simplejpeg_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # as if it were not installed
    assert runpy.run_path(decoding.__file__)["simplejpeg"] is None
    monkeypatch.delitem(sys.modules, "simplejpeg")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "simplejpeg.py").write_text("raise ImportError('libjpeg.so: cannot be loaded')")
    with pytest.raises(ImportError, match="cannot be loaded"):
        runpy.run_path(decoding.__file__)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_mistakes_while_an_image_is_open_are_not_errors_of_its_file(format: str) -> None:
    file = encode(photo(), format)
    with pytest.raises(TypeError, match="ours"), open_decodable(file, decode="fast"):
        raise TypeError("ours")


def test_other_formats_and_pil_images() -> None:
    image = photo()
    region = Region(20, 30, 400, 560)
    for source in (encode(image, "PNG"), encode(image, "WEBP", lossless=True), image):
        apart = steps(
            region_of(source, region, (160, 180)),
            expected(image, region, (160, 180)),
        )
        assert apart.max() <= FULL_SIZE


def test_decode_is_fast_or_exact() -> None:
    with (
        pytest.raises(ValueError, match="fast or exact, not 'quick'"),
        open_decodable(encode(photo()), decode="quick"),  # type: ignore[arg-type]
    ):
        pass


def test_files_of_any_format_give_the_same_pixels_or_the_same_error(shared: Path) -> None:
    read = refused = 0
    for path in sorted((shared / "data" / "wild").iterdir()):
        found: dict[str, Tensor | ImageError] = {}
        for decode in ("exact", "fast"):
            try:
                with open_decodable(path, decode=decode) as opened:
                    height, width = opened.height, opened.width
                    everything = Region(0, 0, height, width)
                    found[decode] = opened.pixels(everything, height, width, BILINEAR)
            except ImageError as error:
                found[decode] = error
        fast, exact = found["fast"], found["exact"]
        if isinstance(exact, ImageError):
            assert isinstance(fast, ImageError) and fast.source == exact.source == str(path)
            refused += 1
        else:
            assert isinstance(fast, Tensor) and torch.equal(fast, exact), path
            read += 1
    assert read > 150 and refused > 50


def test_real_photos_stay_within_the_bound(shared: Path) -> None:
    data = shared / "data"
    paths = [
        *sorted((data / "bccd").rglob("*.jpg"))[::40],
        *sorted((data / "coco128").rglob("*.jpg"))[::12],
        *sorted((data / "imagenette" / "val").rglob("*.JPEG"))[::400],
    ]
    assert len(paths) > 30
    transform = TrainTransform(AugmentOptions(), Preprocessing())
    means = []
    for number, path in enumerate(paths):
        for size in (64, 160, 256):
            crops = []
            for decode in ("fast", "exact"):
                with open_decodable(path, decode=decode) as opened, seeded(number):
                    crops.append(transform.pixels(opened, size, size))
            means.append(steps(*crops).float().mean().item())
    assert max(means) <= REDUCED
    assert np.mean(means) < 0.5


class Files:
    classes = ("photo",)

    def __init__(self, files: list[bytes]) -> None:
        self.files, self.labels = files, [0] * len(files)

    def source(self, index: int) -> bytes:
        return self.files[index]

    def name(self, index: int) -> str:
        return f"sample {index}"


def dataset(files: list[bytes], decode: Any, **options: Any) -> ClassificationSet:
    task_options = ClassificationOptions(augment=AugmentOptions(**options))
    preprocessing = Preprocessing(mean=(0.4, 0.5, 0.6), channel_order="bgr")
    return ClassificationSet(Files(files), preprocessing, task_options, seed=3, decode=decode)


@pytest.mark.parametrize("options", [{}, {"rand_augment": 2}, {"erase": 1.0}])
def test_fast_and_exact_draw_the_same_augmentation(options: dict[str, Any]) -> None:
    keys = [SampleKey(0, 96, 128, epoch) for epoch in range(8)]
    files = [encode(photo())]
    fast, again, exact = (
        dataset(files, decode, **options).__getitems__(keys)[0]
        for decode in ("fast", "fast", "exact")
    )
    assert torch.equal(fast, again)
    apart = (255 * (fast - exact).abs()).mean((1, 2, 3))
    # An operation of RandAugment, such as equalize, may widen what was a small difference.
    assert apart.median() <= REDUCED
    if not options:
        assert apart.max() <= REDUCED


def test_exact_training_images_are_torchvisions() -> None:
    files = [encode(photo()), encode(photo(300, 500), "PNG")]
    options = AugmentOptions()
    transform = v2.Compose(
        [
            v2.RandomResizedCrop((96, 128), options.scale, options.ratio),
            v2.RandomHorizontalFlip(options.flip),
            v2.PILToTensor(),
        ]
    )
    ours = TrainTransform(options, Preprocessing())
    for number in range(10):
        file = files[number % 2]
        with open_decodable(file, decode="exact") as opened, seeded(number):
            got = ours.pixels(opened, 96, 128)
        with seeded(number):
            assert torch.equal(got, transform(Image.open(BytesIO(file)).convert("RGB")))


def test_a_damaged_sample_is_named() -> None:
    data = encode(photo())
    for decode in ("fast", "exact"):
        broken = dataset([data, data[:2000]], decode)
        with pytest.raises(ImageError, match=r"sample 1: .*truncated"):
            broken.__getitems__([SampleKey(0, 64, 64, 0), SampleKey(1, 64, 64, 0)])


@given(*(st.integers(1, 200) for _ in range(4)), st.sampled_from(["RGB", "L"]), st.integers(1, 8))
def test_a_reduced_image_is_no_smaller_than_it_has_to_be(
    width: int, height: int, least_width: int, least_height: int, mode: str, orientation: int
) -> None:
    image = Image.new("RGB", (width, height), "olive").convert(mode)
    file = encode(image, orientation=orientation)
    full = open_image(file)
    image, scale = open_reduced(file, least_height, least_width)
    assert image.size == (-(-full.width // scale), -(-full.height // scale))
    assert image.width >= min(least_width, full.width)
    assert image.height >= min(least_height, full.height)
    assert (
        scale == 8 or full.width < 2 * scale * least_width or full.height < 2 * scale * least_height
    )


@pytest.mark.parametrize("package", ["simplejpeg", "pillow"])
def test_reduced_pixels_are_close(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "pillow":
        monkeypatch.setattr(decoding, "simplejpeg", None)
    file = encode(photo(), orientation=6)
    small, scale = open_reduced(file, 150, 90)
    assert (scale, small.size) == (4, (107, 160))
    boxed = open_image(file).resize(small.size, Image.Resampling.BOX)
    assert steps(TF.pil_to_tensor(small), TF.pil_to_tensor(boxed)).float().mean() < 4
    assert open_reduced(encode(photo(), "PNG"), 10, 10)[1] == open_reduced(photo(), 10, 10)[1] == 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_shrink_with_their_image(orientation: int) -> None:
    file = encode(photo(2560, 1708), orientation=orientation, quality=95)
    boxes = torch.tensor([[200.0, 300.0, 900.0, 1200.0], [1000.0, 1000.0, 1600.0, 1500.0]])
    none = torch.zeros(2)
    annotation = Annotation(boxes, torch.tensor([0, 1]), none.bool(), none)
    samples = SimpleNamespace(source=lambda _: file, annotation=lambda _: annotation)
    options = DetectionOptions(augment=BoxAugmentOptions(crop=0.0, photometric=0.0))
    preprocessing = Preprocessing(resize_mode="stretch", resize=96, crop=96)
    fast, exact = (
        DetectionSet(samples, preprocessing, options, seed=0, decode=decode)
        for decode in ("fast", "exact")
    )
    assert fast.transform.decoded_size(96, 96) == (320, 320)
    fast, exact = (dataset[SampleKey(0, 96, 96, 0)] for dataset in (fast, exact))
    assert 255 * (fast[0] - exact[0]).abs().mean() <= REDUCED
    torch.testing.assert_close(fast[1], exact[1], atol=1e-3, rtol=0)
    assert fast[2].tolist() == exact[2].tolist() == [0, 1]
