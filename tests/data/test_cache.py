"""The cache of decoded images: the same pixels, within its limit, after any change."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from mobilevit.data import cache as caching
from mobilevit.data import decode as decoding
from mobilevit.data.cache import ImageCache
from mobilevit.data.errors import DataError
from mobilevit.data.images import ImageError
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks import get_task
from mobilevit.tasks.dataset import EvaluationSet, TrainingSet
from mobilevit.tasks.detection.dataset import Annotation
from mobilevit.utils.files import HOST

STRETCH = Preprocessing(resize_mode="stretch", resize=64, crop=64)
BOXES = torch.tensor([[10.0, 20, 300, 200], [200.0, 50, 420, 400]])


class Files:
    """Two files as samples of any task."""

    classes, labels, ignore = ("cat", "dog"), (0, 1), 255

    def __init__(self, sources: list[Any]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def source(self, index: int) -> Any:
        return self.sources[index]

    def name(self, index: int) -> str:
        return f"file {index}"

    def targets(self, indices: Any, sizes: Any) -> Any:
        return sizes

    def annotation(self, index: int) -> Annotation:
        return Annotation(
            BOXES, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), BOXES[:, 0]
        )

    def mask(self, index: int) -> np.ndarray:
        return np.arange(427 * 640, dtype=np.int64).reshape(427, 640).astype(np.uint8) % 2


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A JPEG that is turned by its orientation, and a PNG, both upright 640 x 427."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    exif = Image.Exif()
    exif[274] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(files[0], quality=90, exif=exif)
    photo.save(files[1])
    return files


def batch(task: str, sources: list[Any], cache: ImageCache | None, **options: Any) -> list[Any]:
    """Two epochs' batches, as training makes them; those of 200 px need crops at full size."""
    made = get_task(task)
    dataset: TrainingSet = made.training_dataset(
        Files(sources), STRETCH, made.options(), seed=3, cache=cache, **options
    )
    keys = [
        [SampleKey(i, size, size, epoch) for i in (0, 1, 0)] for epoch, size in ((0, 64), (1, 200))
    ]
    return [dataset.__getitems__(one) for one in keys]


@pytest.mark.parametrize(
    ("task", "decode", "content"),
    [
        ("classification", "fast", False),
        ("classification", "exact", False),
        ("classification", "fast", True),
        ("detection", "fast", False),
        ("segmentation", "fast", False),
        ("segmentation", "exact", False),
    ],
)
def test_no_pixel_differs_and_nothing_is_decoded_twice(
    task: str,
    decode: str,
    content: bool,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources: list[Any] = [file.read_bytes() for file in photos] if content else list(photos)
    without = batch(task, sources, None, decode=decode)
    cache = ImageCache(tmp_path / "cache", 10**9)
    first = batch(task, sources, cache, decode=decode)
    monkeypatch.setattr(decoding, "_decoded", None)
    monkeypatch.setattr(decoding, "open_image", None)
    again = batch(task, sources, ImageCache(tmp_path / "cache", 10**9), decode=decode)
    for made in (first, again):
        torch.testing.assert_close(made, without, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["crop", "shortest_edge"])
def test_validation_images_and_their_sizes_are_the_same(
    mode: Any, photos: list[Path], tmp_path: Path
) -> None:
    preprocessing = Preprocessing(resize_mode=mode, resize=96, crop=96, mean=(0.4, 0.5, 0.6))
    without = EvaluationSet(Files(photos), preprocessing).__getitems__([0, 1])
    for _ in range(2):
        cache = ImageCache(tmp_path / "cache", 10**9)
        cached = EvaluationSet(Files(photos), preprocessing, cache).__getitems__([0, 1])
        torch.testing.assert_close([*map(tuple, cached)], [*map(tuple, without)], rtol=0, atol=0)
    other = Preprocessing(resize_mode=mode, resize=64, crop=64)
    assert EvaluationSet(Files(photos), other, cache).__getitems__([0])[0].images.shape[2] == 64
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3


def square(value: int, side: int = 10) -> caching.Decoded:
    return np.full((side, side, 3), value, np.uint8), (side, side)


def test_a_changed_file_a_damaged_image_and_another_pillow_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "photo"
    source.write_bytes(b"abc")
    cache = ImageCache(tmp_path / "cache", 10**6)

    def value(decoded: int) -> int:
        return int(cache.load(source, "1/1", lambda: square(decoded))[0][0, 0, 0])

    assert [value(1), value(2)] == [1, 1]
    os.utime(source, ns=(1, 1))
    assert [value(3), value(4)] == [3, 3]
    source.write_bytes(b"abcd")
    os.utime(source, ns=(1, 1))
    assert [value(5), value(6)] == [5, 5]
    (file,) = (tmp_path / "cache").glob("*.safetensors")  # what has changed took its place
    file.write_bytes(file.read_bytes()[:-1])
    assert [value(7), value(8)] == [7, 7]
    monkeypatch.setattr(caching.PIL, "__version__", "99.0")
    assert [value(9), value(10)] == [9, 9]
    source.unlink()
    assert value(11) == 11  # no longer there: decoding says so
    with pytest.raises(ImageError, match="no such file"):
        batch("classification", [source, source], cache)


def test_the_folder_stays_within_its_limit(tmp_path: Path) -> None:
    folder, image = tmp_path / "cache", 1000 * 3 + 500
    cache = ImageCache(folder, 10 * (1000 * 3 + caching.HEADER) - 1)

    def stored() -> list[bool]:
        # What is not stored is decoded each time.
        pixels = [cache.load(b"%d" % i, "", lambda: blank(9))[0] for i in range(12)]
        return [int(one[0, 0, 0]) != 9 for one in pixels]

    def blank(value: int) -> caching.Decoded:
        return np.full((10, 100, 3), value, np.uint8), (10, 100)

    for index in range(12):
        cache.load(b"%d" % index, "", lambda: blank(1))
    assert stored() == [True] * 9 + [False] * 3
    assert sum(file.stat().st_size for file in folder.iterdir()) <= cache.limit
    for age, file in enumerate(sorted(folder.glob("*.safetensors"))):
        os.utime(file, (age, age))
    cache = ImageCache(folder, 3 * image)  # the oldest are deleted
    left = sorted(folder.glob("*.safetensors"))
    assert len(left) == 3 and [file.stat().st_mtime for file in left] == [6, 7, 8]


def fill(folder: Path, limit: int, process: int) -> None:
    cache = ImageCache(folder, limit)
    for index in range(20):
        cache.load(b"%d" % ((index + 5 * process) % 20), "", lambda: square(7, 40))


def test_processes_share_a_folder_and_its_limit(tmp_path: Path) -> None:
    folder, limit = tmp_path / "cache", 10 * (4800 + caching.HEADER)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(folder, limit, n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    files = list(folder.glob("*.safetensors"))
    assert 9 <= len(files) < 20 and sum(file.stat().st_size for file in files) <= limit
    # What a killed process has counted but not written is forgotten, and its leftovers are removed.
    (folder / caching.USED).write_text(f"{limit:{caching.DIGITS}}")
    leftover = folder / f".x.safetensors.{HOST}.999999999-00000000"
    leftover.touch()
    ImageCache(folder, limit + 2000).load(b"new", "", lambda: square(1))
    assert len(list(folder.glob("*.safetensors"))) == len(files) + 1 and not leftover.exists()


def test_a_folder_of_other_files_and_one_that_cannot_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match=r"holds other files, such as model\.safetensors"):
        ImageCache(tmp_path, 10**6)
    with pytest.raises(DataError, match=r"model\.safetensors: the cache cannot be written"):
        ImageCache(tmp_path / "model.safetensors", 10**6)
    cache = ImageCache(tmp_path / "cache", 10**6)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "save_file", full)
    with pytest.raises(DataError, match=r"No space left .* smaller data\.cache_gb"):
        cache.load(b"photo", "", lambda: square(1))
