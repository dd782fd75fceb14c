"""Shards hold every picture as it is, and give it back once, however they are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.data import shards_tar
from mobilevit.data.datasets import EvaluationSet, FolderSamples, TrainingSet
from mobilevit.data.find_shards import is_sharded, shard_evaluation, shard_splits
from mobilevit.data.folder import DataError, splits
from mobilevit.data.images import ImageError
from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.data.multiscale import MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.data.shards import INDEX, UNFINISHED, read_index
from mobilevit.data.shards_write import index_shards, write_shards
from mobilevit.data.streaming import order_of
from mobilevit.data.transforms import AugmentOptions, BatchMix, TrainTransform

CLASSES = ("ångström", "b.c")
RULE = Preprocessing(crop=16, resize=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 pictures to train on, 14 to judge by, of two classes; names that webdataset would split."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        noise = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
        split = "val" if number % 30 >= 23 else "train"
        name = f"{number}.v1.JPEG" if number % 3 else f"deep/{number}.png"
        file = root / split / CLASSES[number // 30] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(file)
    return root


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_shards(splits(pictures), out, size=1e6, shards=7, workers=2)
    return out


def copied(shards: Path, to: Path) -> Path:
    to.mkdir()
    for file in shards.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def pipes(shards: Path) -> str:
    return f"pipe:cat {shards}/{{train-{{000000..000006}},val-{{000000..000001}}}}.tar"


def loader(samples: Any, workers: int = 0, pool: int = 20) -> EpochLoader:
    """Training batches of one seed."""
    count = len(samples.labels)
    schedule = MultiScaleSchedule(samples=count, sizes=(16, 32), base_size=16, base_batch=5)
    transform = TrainTransform(AugmentOptions(), RULE)
    dataset = TrainingSet(samples, transform, BatchMix(AugmentOptions(), 2), seed=0)
    order = order_of(samples, count, seed=0, pool=pool)
    return EpochLoader(dataset, MultiScaleBatchSampler(order, schedule), workers=workers)


def test_shards_hold_the_files_as_they_are(pictures: Path, shards: Path) -> None:
    index = read_index(str(shards))
    assert index.classes == CLASSES
    assert [len(index.parts[name].shards) for name in ("train", "val")] == [7, 2]
    whole = json.loads((shards / INDEX).read_text())["splits"]["train"]
    assert whole["samples"] == 46 and whole["counts"] == {"ångström": 23, "b.c": 23}
    for shard in index.parts["train"].shards:
        content = (shards / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.size, shard.sha256)
        assert shard.samples in (6, 7)
    found = shard_splits(str(shards))
    for ours, split in ((found.train, splits(pictures).train), (found.val, splits(pictures).val)):
        theirs = {path.read_bytes(): label for path, label in zip(split.paths, split.labels)}
        assert {ours.source(i): ours.labels[i] for i in range(len(ours.labels))} == theirs
    labels = found.train.labels[:7].tolist()
    assert labels not in ([0] * 7, [1] * 7)  # shuffled ahead of writing
    assert "train-000000.tar: " in found.train.name(3)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_webdataset_reads_them(pictures: Path, shards: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = shard_splits(str(shards)).train
    assert len(theirs) == len(ours.labels)
    for index, sample in enumerate(theirs):
        picture = sample.get("png", sample.get("jpeg"))
        assert (picture, int(sample["cls"])) == (ours.source(index), ours.labels[index])
    assert len({sample["__key__"] for sample in theirs}) == 46


def test_an_interrupted_writing_goes_on(pictures: Path, shards: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", splits(pictures)
    write = partial(write_shards, data, out, size=1e6, shards=7)
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(DataError, match="is not empty"):
        write()
    (out / "mine.txt").unlink()
    write()
    expected = {path.name: path.read_bytes() for path in out.iterdir()}
    assert expected == {path.name: path.read_bytes() for path in shards.iterdir()}
    with pytest.raises(DataError, match="holds shards already"):
        write()
    # As SIGKILL leaves it: some shards whole, one begun, no index.
    (out / INDEX).unlink()
    (out / "train-000002.tar").unlink()
    (out / ".train-000002.tar.part").write_bytes(b"begun")
    identity = tmp_path / "identity"
    with pytest.raises(DataError, match="is not empty"):  # whatever is there without a note
        write()
    write_shards(data, identity, size=1e6, shards=7)  # to have the note of such a call
    (identity / INDEX).unlink()
    for note in _notes(pictures, tmp_path):
        (out / UNFINISHED).write_text(note)
    assert is_sharded(str(out))
    with pytest.raises(DataError, match="not all written"):
        shard_splits(str(out))
    with pytest.raises(DataError, match="other pictures, or with other options"):
        write_shards(data, out, size=1e6, shards=7, seed=1)
    write()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


def _notes(pictures: Path, tmp_path: Path) -> list[str]:
    """The note that a call leaves which can not write its first shard."""
    out = tmp_path / "failed"
    (out / "train-000000.tar").mkdir(parents=True)  # where a file should be
    (out / UNFINISHED).touch()
    with pytest.raises(json.JSONDecodeError):
        write_shards(splits(pictures), out, size=1e6, shards=7)
    (out / UNFINISHED).unlink()
    (out / "train-000000.tar").rmdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilevit.data.shards_write._written", _full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_shards(splits(pictures), out, size=1e6, shards=7)
    return [(out / UNFINISHED).read_text()]


def _full_disk(_: Any) -> Any:
    raise OSError(28, "No space left on device")
