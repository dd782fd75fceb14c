"""Time decoding and augmenting, as training does it, against Pillow and torchvision's transforms.

    python benchmarks/input.py [--folder PHOTOS] [--rounds N]

Without a folder, JPEGs are made of scikit-learn's two sample photos: of 640x480 pixels, and of 12
megapixels with a sensor's noise, as phones make them. The baseline opens a file with Pillow,
converts it to RGB and applies torchvision's v2 transforms: random resized crop, flip, float32. One
process with one thread makes the same batches of the same random crops with each in turn; times are
processor time. "cached" is fast with `--data.cache`, once the cache has what a batch needs. The
last columns are the differences between fast and baseline pixels; cached ones are those of fast.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from mobilevit.data.cache import ImageCache
from mobilevit.data.formats.files import list_files
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import ClassificationSet
from mobilevit.utils.random import seeded

SIZES = (160, 256, 320)


class Files:
    """Files as samples of one class."""

    classes = ("photo",)

    def __init__(self, files: Sequence[Path]) -> None:
        """Hold the files' paths."""
        self.files, self.labels = files, [0] * len(files)

    def source(self, index: int) -> Path:
        """The file."""
        return self.files[index]

    def name(self, index: int) -> str:
        """A name for messages."""
        return f"photo {index}"


def written(folder: Path, width: int, height: int, *, quality: int, noise: float) -> list[Path]:
    """Write the sample photos at another size, with noise of a standard deviation of 0..255."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    files = []
    for number, photo in enumerate(load_sample_images().images):
        image = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
        values = np.asarray(image, np.float32) + draw.normal(0, noise, (height, width, 3))
        files.append(folder / f"{number}.jpg")
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(files[-1], quality=quality)
    return files


def baseline(files: Sequence[Path]) -> Callable[[list[SampleKey]], Tensor]:
    """A batch of the baseline, with the same random numbers as ours."""

    def batch(keys: list[SampleKey]) -> Tensor:
        transform = v2.Compose(
            [
                v2.RandomResizedCrop((keys[0].height, keys[0].width)),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        images = []
        for key in keys:
            with seeded(0, key.epoch, key.sample), Image.open(files[key.sample]) as one:
                images.append(transform(one.convert("RGB")))
        return torch.stack(images)

    return batch


def ours(
    files: Sequence[Path], decode: str, cache: ImageCache | None = None
) -> Callable[[list[SampleKey]], Tensor]:
    """A batch of the training set."""
    dataset = ClassificationSet(
        Files(files), Preprocessing(), ClassificationOptions(), seed=0, decode=decode, cache=cache
    )
    return lambda keys: dataset.__getitems__(keys)[0]


def compare(files: Sequence[Path], size: int, cache: ImageCache, *, rounds: int, batch: int) -> str:
    """Time one size; a line of the table."""
    batches = {
        "baseline": baseline(files),
        "fast": ours(files, "fast"),
        "exact": ours(files, "exact"),
        "cached": ours(files, "fast", cache),
    }
    times: dict[str, list[float]] = {name: [] for name in batches}
    apart, worst = [], 0.0
    order, draw = list(batches), random.Random(0)
    for index in range(rounds + 1):
        draw.shuffle(order)
        keys = [
            SampleKey(sample % len(files), size, size, index * batch + sample)
            for sample in range(batch)
        ]
        made_by = {}
        batches["cached"](keys)  # stores what it lacks
        for name in order:
            start = time.process_time()
            made_by[name] = batches[name](keys)
            if index:  # the first round warms up
                times[name].append((time.process_time() - start) / batch)
        pixels = {name: (255 * made).round() for name, made in made_by.items()}
        if not torch.equal(pixels["exact"], pixels["baseline"]):
            raise AssertionError("exact decoding does not give the baseline's pixels")
        if not torch.equal(pixels["cached"], pixels["fast"]):
            raise AssertionError("the cache does not give the pixels of fast decoding")
        error = (pixels["fast"] - pixels["baseline"]).abs()
        apart.append(error.mean().item())
        worst = max(worst, error.mean((1, 2, 3)).max().item())
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["baseline"], times[name], strict=True))
        for name in ("fast", "cached")
    }
    return (
        f"{size:6}{milliseconds['baseline']:10.2f}{milliseconds['exact']:10.2f}"
        f"{milliseconds['fast']:10.2f}{ratios['fast']:8.2f}"
        f"{milliseconds['cached']:10.2f}{ratios['cached']:8.2f}"
        f"{statistics.mean(apart):10.2f}{worst:14.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the input of training.")
    parser.add_argument("--folder", type=Path, help="time these photos instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.folder:
            names = list_files(options.folder)[0][:200] if options.folder.is_dir() else []
            if not names:
                parser.error(f"{options.folder}: no images")
            sets = {str(options.folder): ([Path(name) for name in names], 32)}
        else:
            sets = {
                "640x480": (written(folder / "small", 640, 480, quality=90, noise=2), 32),
                "4032x3024": (written(folder / "large", 4032, 3024, quality=92, noise=4), 8),
            }
        cache = ImageCache(folder / "cache", 10**10)
        for name, (files, batch) in sets.items():
            kilobytes = statistics.mean(file.stat().st_size for file in files) / 1000
            print(f"\n{name}, {kilobytes:.0f} KB a file: ms an image; ratio: baseline / this")
            print(
                f"{'px':>6}{'baseline':>10}{'exact':>10}{'fast':>10}{'ratio':>8}{'cached':>10}"
                f"{'ratio':>8}{'apart':>10}{'worst image':>14}"
            )
            for size in options.sizes:
                line = compare(files, size, cache, rounds=options.rounds, batch=batch)
                print(line, flush=True)
    print("\napart: mean difference of the pixels of fast and baseline, in steps of 1/255")


if __name__ == "__main__":
    main()
