"""Shards hold image files unchanged, and give the same batches wherever they are stored."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import resource
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants
from PIL import Image

from mobilevit.__main__ import main
from mobilevit.data.errors import DataError
from mobilevit.data.images import ImageError
from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.data.open import open_evaluation, open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.data.shards import tar as shards_tar
from mobilevit.data.shards.index import INDEX, UNFINISHED, read_index
from mobilevit.data.shards.open import is_sharded
from mobilevit.data.shards.samples import Shard, ShardSamples
from mobilevit.data.shards.tables import TableShard
from mobilevit.data.shards.write import index_shards, write_shards
from mobilevit.data.splits import LabelSamples, Splits
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import ClassificationSet
from mobilevit.tasks.dataset import EvaluationSet
from mobilevit.utils.files import HOST
from tests.data.factories import image_bytes, shard_evaluation, shard_splits

CLASSES = ("a.b", "ödland")
PREPROCESSING = Preprocessing(crop=16, resize=16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 images to train on, 14 to evaluate on; two classes; names that webdataset would split."""
    root = tmp_path_factory.mktemp("images")
    for number in range(60):
        noise = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
        split = "val" if number % 30 >= 23 else "train"
        name = f"{number}.v1.JPEG" if number % 3 else f"deep/{number}.png"
        file = root / split / CLASSES[number // 30] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(file)
    return root


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_shards(open_folder(images), out, size=1e6, shards=7, workers=2)
    return out


def open_folder(root: Path) -> Splits[LabelSamples]:
    return open_splits(LabelSamples, DataOptions(root=str(root), check=False))


def contents(samples: LabelSamples) -> dict[bytes, int]:
    """File content -> label."""
    return {
        Path(samples.name(index)).read_bytes(): int(label)
        for index, label in enumerate(samples.labels)
    }


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
    dataset = ClassificationSet(samples, PREPROCESSING, ClassificationOptions(), seed=0)
    order = samples.order(seed=0, pool=pool)
    return EpochLoader(dataset, MultiScaleBatchSampler(order, schedule), workers=workers)


def test_shards_hold_the_files_as_they_are(images: Path, shards: Path) -> None:
    index = read_index(str(shards))
    assert index.classes == CLASSES
    assert [len(index.splits[name]) for name in ("train", "val")] == [7, 2]
    train = json.loads((shards / INDEX).read_text())["splits"]["train"]
    assert train["samples"] == 46 and train["counts"] == {"a.b": 23, "ödland": 23}
    for shard in index.splits["train"]:
        content = (shards / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.size, shard.sha256)
        assert len(shard.rows) in (6, 7)
    sharded = shard_splits(shards)
    for ours, split in (
        (sharded.train, open_folder(images).train),
        (sharded.val, open_folder(images).val),
    ):
        found = {ours.source(i): int(ours.labels[i]) for i in range(len(ours.labels))}
        assert found == contents(split)
    labels = sharded.train.labels[:7].tolist()
    assert labels not in ([0] * 7, [1] * 7)  # shuffled ahead of writing
    assert "train-000000.tar: " in sharded.train.name(3)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_webdataset_reads_them(images: Path, shards: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = shard_splits(shards).train
    assert len(theirs) == len(ours.labels)
    for index, sample in enumerate(theirs):
        image = sample.get("png", sample.get("jpeg"))
        assert (image, int(sample["cls"])) == (ours.source(index), ours.labels[index])
    assert len({sample["__key__"] for sample in theirs}) == 46


def test_interrupted_writing_continues(images: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write = partial(write_shards, open_folder(images), out, size=1e6, shards=7)
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
    # As SIGKILL leaves it: some complete shards, one partial, no index.
    identity = json.loads((out / INDEX).read_text())["identity"]
    (out / UNFINISHED).write_text(json.dumps({"identity": identity}))
    (out / INDEX).unlink()
    (out / "train-000002.tar").unlink()
    (out / f".train-000002.tar.{HOST}.999999999-1a2b3c4d").write_bytes(b"partial")
    assert is_sharded(str(out))
    with pytest.raises(DataError, match="not all of its shards are written"):
        shard_splits(out)
    with pytest.raises(DataError, match="other images, or with other options"):
        write_shards(open_folder(images), out, size=1e6, shards=7, seed=1)
    written_at = (out / "train-000001.tar").stat().st_mtime_ns
    write()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    assert (out / "train-000001.tar").stat().st_mtime_ns == written_at


class Quiet(SimpleHTTPRequestHandler):
    """A server without logs and without range requests."""

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with contextlib.suppress(ConnectionError):  # who reads has left
            super().copyfile(source, outputfile)


@pytest.fixture(scope="module")
def server(shards: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Two epochs of batches, from files in one process."""
    batches = loader(shard_splits(shards).train)
    epochs = []
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        epochs.append(list(batches))
    return epochs


@pytest.mark.parametrize("how", ["folder", "pattern", "file URL", "HTTP", "pipe"])
@pytest.mark.parametrize(("workers", "taken"), [(0, 4), (2, 3)])
def test_however_shards_are_read_the_batches_are_the_same(
    shards: Path, server: str, expected: Any, how: str, workers: int, taken: int
) -> None:
    """In every process, from any position in an epoch."""
    pattern = "/{train-{000000..000006},val-{000000..000001}}.tar"
    root, index = {
        "folder": (str(shards), None),
        "pattern": (f"{shards}{pattern}", None),
        "file URL": (f"file://{shards}", None),
        "HTTP": (f"{server}{pattern}", None),
        "pipe": (pipes(shards), str(shards)),
    }[how]
    found = shard_splits(root, index=index)
    assert (found.train.images.sequential, len(found.val.labels)) == (
        how not in ("folder", "pattern"),
        14,
    )
    batches = loader(found.train, workers)
    batches.load_state_dict({**batches.state_dict(), "epoch": 0, "taken": taken})
    for epoch, batches_of_epoch in enumerate(expected):
        batches.sampler.set_epoch(epoch)
        for ours, theirs in zip(batches, batches_of_epoch[taken * (epoch == 0) :], strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_an_epoch_has_every_sample_once(shards: Path, expected: Any) -> None:
    known = torch.bincount(torch.from_numpy(shard_splits(shards).train.labels))
    for epoch in expected:
        assert sum(len(labels) for _, labels in epoch) == 46
        assert torch.equal(torch.bincount(torch.cat([labels for _, labels in epoch])), known)
    assert not torch.equal(expected[0][0][0], expected[1][0][0])


class CountedShard(Shard):
    """A sequential shard that counts how often it was read from its beginning."""

    labels = np.zeros(10, np.int32)
    identity = "counted"

    def __init__(self, number: int) -> None:
        self.number, self.opened, self.length = number, 0, 10

    def read(self, start: int = 0) -> Iterator[bytes]:
        self.opened += 1
        yield from (self.name(position).encode() for position in range(start, self.length))

    def name(self, position: int) -> str:
        return f"{self.number} {position}"


def test_sequential_shards_are_read_once_an_epoch() -> None:
    shards = [CountedShard(number) for number in range(30)]
    samples = ShardSamples.from_shards("shards", shards, ["a"])
    order = samples.order(seed=0, pool=60)
    for epoch in (1, 2, 3):
        order.set_epoch(epoch)
        for batch in order.deal([5] * 60):
            assert [samples.source(index) for index in batch] == [
                f"{index // 10} {index % 10}".encode() for index in batch
            ]
        # Two streams may share a shard.
        assert sum(shard.opened for shard in shards) <= epoch * (30 + 11)
    assert len(samples.images._buffers) <= 36
    shards[3].length = 5
    with pytest.raises(DataError, match="3 7: the shard ends before it; it has changed"):
        samples.source(37)


def test_a_full_disk_is_an_error() -> None:
    samples = ShardSamples.from_shards("shards", [CountedShard(0)], ["a"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be buffered there: .*; set TMPDIR"):
            samples.source(9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once(images: Path, shards: Path, workers: int) -> None:
    split = open_folder(images).val
    known = contents(split)
    for root, index in ((str(shards), None), (pipes(shards), str(shards))):
        samples = shard_evaluation(root, ("other", "ödland", "a.b"), index=index)
        batches = EvaluationLoader(
            EvaluationSet(samples, PREPROCESSING), batch_size=4, workers=workers
        )
        seen = [
            (index, label)
            for (batch,) in batches
            for index, label in zip(batch.indices, batch.targets.tolist(), strict=True)
        ]
        assert sorted(index for index, _ in seen) == list(range(14))
        turned = {0: 2, 1: 1}
        for index_, label in seen:
            assert label == samples.labels[index_] == turned[known[samples.source(index_)]]
    with pytest.raises(DataError, match='unknown class "ödland"'):
        shard_evaluation(shards, ("a.b",))


def test_subsets(shards: Path) -> None:
    for root, index in ((str(shards), None), (pipes(shards), str(shards))):
        samples = shard_splits(root, index=index).train
        subset = samples.subset([20, 3, 40])
        # In sequential shards those from the first one's shard on: it begins with sample 14.
        expected = [14, 15, 16] if samples.images.sequential else [20, 3, 40]
        assert len(subset) == 3 and subset.labels.tolist() == samples.labels[expected].tolist()
        assert [subset.source(i) for i in range(3)] == [samples.source(i) for i in expected]
        assert [subset.name(i) for i in range(3)] == [samples.name(i) for i in expected]
        again = subset.relabel(("other", *CLASSES))
        assert again.labels.tolist() == (subset.labels + 1).tolist()
        evaluation = EvaluationLoader(EvaluationSet(again, PREPROCESSING), batch_size=2, workers=0)
        labels = torch.cat([batch.targets for (batch,) in evaluation])
        assert labels.tolist() == again.labels.tolist()


def test_one_split_has_shards_held_out(shards: Path) -> None:
    only = f"{shards}/train-{{000000..000006}}.tar"
    found = shard_splits(only, val_fraction=0.3)
    assert [len(part.images.shards) for part in (found.train, found.val)] == [5, 2]
    assert "has only train: 2 of 7 shards held out with seed 0 (3" in found.note
    assert len(found.train.labels) + len(found.val.labels) == 46
    sources = [
        {part.source(index) for index in range(len(part.labels))}
        for part in (found.train, found.val)
    ]
    assert len(sources[0] | sources[1]) == 46
    with pytest.raises(DataError, match="one shard cannot be divided"):
        shard_splits(f"{shards}/train-000003.tar")


def test_urls_are_named_as_they_were_given(shards: Path) -> None:
    root = f"file://{shards}"
    only = f"{root}/train-{{000000..000006}}.tar"
    found = shard_splits(only)
    assert f"{only} has only train" in found.note
    for part in (found.train, found.val, found.val.relabel(("c", *CLASSES)).subset([0])):
        single = part.subset(np.flatnonzero(part.labels == part.labels[0])[:1])
        issues = [*single.check_classes(), *replace(part, indices=part.indices[:0]).check_split("")]
        assert [issue.where for issue in issues] == [only] * 2
        assert part.where_class("a.b") == only
    one = f"{root}/val-000000.tar"
    for place, classes, options, message in (
        (root, None, {"split": "nope"}, "has no split 'nope', only train, val"),
        (root, ("a.b",), {}, 'unknown class "ödland"'),
    ):
        with pytest.raises(DataError, match=f"^{re.escape(f'{place}: {message}')}"):
            open_evaluation(LabelSamples, DataOptions(root=place, **options), classes=classes)
    for place, message in (
        (f"{root}/train-000003.tar", "one shard cannot be divided"),
        (one, 'has split "val" but nothing to train on'),
    ):
        with pytest.raises(DataError, match=re.escape(f"  {place}: {message}")):
            shard_splits(place)


@pytest.mark.parametrize(
    "location",
    ["a/train-0.tar", r"C:\a\train-0.tar", "s3://b/train-0.tar?x=1", "pipe:cat 'train-0.tar'"],
)
def test_shards_are_identified_by_their_names(location: str) -> None:
    assert shards_tar.tar_name(location) == "train-0.tar"


def test_mistakes_while_a_shard_is_open_are_not_errors_of_its_client(shards: Path) -> None:
    for location in (f"{shards}/{INDEX}", f"file://{shards}/{INDEX}", f"pipe:cat {shards}/{INDEX}"):
        with pytest.raises(TypeError, match="ours"), shards_tar.open_location(location):
            raise TypeError("ours")


def test_errors_name_local_shards(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index.json: there is no such file"):
        shard_splits(f"file://{tmp_path}")
    with pytest.raises(DataError, match=r"--data.index gives its path"):
        shard_splits(pipes(shards))
    with pytest.raises(DataError, match=r"train-000007.tar: the index has no shard"):
        shard_splits(f"{shards}/train-{{000006..000009}}.tar")
    copy = copied(shards, tmp_path / "copy")
    (copy / "train-000001.tar").unlink()
    cut = copy / "val-000001.tar"
    cut.write_bytes(cut.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"shards: 2\)(.*\n)*.*train-000001.tar: cannot be read"):
        shard_splits(copy)
    with pytest.raises(DataError, match=r"val-000001.tar: has \d+ bytes, not \d+: it is cut off"):
        shard_evaluation(copy, CLASSES)


def test_errors_name_sequential_shards(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_tar, "RETRY_AFTER", ())
    copy = copied(shards, tmp_path / "copy")
    cut, other = copy / "train-000001.tar", copy / "train-000002.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    other.write_bytes((copy / "train-000003.tar").read_bytes())
    (copy / "train-000004.tar").unlink()
    samples = shard_splits(f"file://{copy}").train
    with pytest.raises(
        DataError, match=r"train-000001.tar: ends inside sample \d of 7; .* cut off"
    ):
        [samples.source(index) for index in range(7, 14)]
    with pytest.raises(DataError, match=r"train-000002.tar: sample \d of 7 is not where the index"):
        [samples.source(index) for index in range(14, 21)]
    with pytest.raises(DataError, match=r"train-000004.tar: there is no such shard"):
        samples.source(28)
    with pytest.raises(DataError, match=r"cat .*train-000004.tar"):
        shard_splits(pipes(copy), index=str(copy)).train.source(28)
    # A worker says the same.
    with pytest.raises(DataError, match=r"train-00000\d.tar: "):
        list(loader(samples, workers=2))


def test_a_stream_that_breaks_is_read_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shards_tar, "RETRY_AFTER", (0.0, 0.0))
    first = tmp_path / "first"  # the command prints a part only, once for each shard
    command = f"mkdir {first}-$(basename {{0}}) 2>/dev/null && head -c 4000 {{0}} || cat {{0}}"
    places = [f"pipe:{command.format(path)}" for path in sorted(shards.glob("*.tar"))]
    broken = replace(read_index(str(shards)).splits["train"][0], location=places[0])
    intact = shard_splits(shards).train
    assert list(broken.read()) == [intact.source(index) for index in range(7)]
    assert "trying again" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["splits"]["train"]["shards"][0].update(file="../x.tar"), "not in its"),
        (lambda index: index["splits"]["train"]["shards"][0].update(file="pipe:ls"), "not in its"),
        (lambda index: index["splits"]["train"].update(table="val.npy"), "not the table"),
        (lambda index: index["splits"]["train"]["shards"].pop(), "does not match"),
        (lambda index: index["classes"].pop(), "labels outside the 1 classes"),
        (lambda index: index.pop("classes"), "damaged: KeyError"),
    ],
)
def test_a_wrong_index_is_refused(shards: Path, tmp_path: Path, change: Any, message: str) -> None:
    copy = copied(shards, tmp_path / "copy")
    index = json.loads((copy / INDEX).read_text())
    change(index)
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        shard_splits(copy)


def test_shards_are_the_same_wherever_they_are(shards: Path) -> None:
    contents = dict(shard_splits(shards).train.contents())
    assert dict(shard_splits(pipes(shards), index=str(shards)).train.contents()) == contents
    other = shard_splits(f"{shards}/train-{{000000..000006}}.tar").train.contents()
    assert dict(other).keys() < contents.keys() and len(contents) == 7


def test_shards_of_others_are_indexed(images: Path, tmp_path: Path) -> None:
    """Tars as the `tar` command makes them, with other members in them."""
    split = open_folder(images).train
    for number in range(2):
        folder = tmp_path / f"content{number}"
        folder.mkdir()
        for index in range(number, len(split), 2):
            path, label = Path(split.name(index)), split.labels[index]
            key = path.name.split(".")[0]
            (folder / f"{key}.jpg").write_bytes(path.read_bytes())
            (folder / f"{key}.cls").write_text(f"{label}\n")
            (folder / f"{key}.json").write_text("{}")
        subprocess.run(
            ["tar", "--sort=name", "-cf", tmp_path / f"{number}.tar", "-C", folder, "."], check=True
        )
    places = [str(tmp_path / f"{number}.tar") for number in range(2)]
    with pytest.raises(DataError, match=r"number their classes, 0 to 1, .*--classes"):
        index_shards({"train": places}, tmp_path / "index", classes=None)
    with pytest.raises(
        DataError, match=r"is of class '1', which is neither a name nor a number of the 1 classes"
    ):
        index_shards({"train": places}, tmp_path / "index", classes=["a"])
    index_shards({"train": places[:1], "val": places[1:]}, tmp_path / "index", classes=CLASSES)
    found = shard_splits(f"{tmp_path}/{{0,1}}.tar", index=str(tmp_path / "index"))
    known = contents(split)
    for part in (found.train, found.val):
        assert len(part.labels) == 23
        assert all(known[part.source(i)] == part.labels[i] for i in range(23))
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:9000])
    with pytest.raises(DataError, match=r"0.tar: cut off"):
        index_shards({"train": places}, tmp_path / "other", classes=CLASSES)
    subprocess.run(
        ["tar", "-cf", tmp_path / "0.tar", "-C", tmp_path / "content0", "1.jpg"], check=True
    )
    with pytest.raises(DataError, match=r"a sample is one image and one .cls"):
        index_shards({"train": places}, tmp_path / "other", classes=CLASSES)


def test_a_broken_image_is_named_by_its_shard(tmp_path: Path, images: Path) -> None:
    root = tmp_path / "images"
    for split, number in itertools.product(("train", "val"), range(2)):
        file = root / split / "ab"[number] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no image")
    write_shards(open_folder(root), tmp_path / "out", size=1e6)
    samples = shard_splits(str(tmp_path / "out")).train
    batches = EvaluationLoader(EvaluationSet(samples, PREPROCESSING), batch_size=1, workers=0)
    with pytest.raises(ImageError, match=r"train-000000.tar: [ab]/\d.jpg: "):
        list(batches)


class ClientError(Exception):
    """As those of HTTP and cloud clients, no `OSError`."""


class LostFile(BytesIO):
    def read(self, *_: Any) -> bytes:
        raise ClientError("connection lost")


class Unreachable(MemoryFileSystem):
    """A store whose client cannot open files, or loses the connection while it reads them."""

    protocol = "unreachable"

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        if "refused" in path:
            raise ClientError("no route to host")
        if "unknown" in path:
            raise FileNotFoundError(path) from ClientError("name not known")
        return LostFile()


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("unreachable://refused", "refused/index.json: cannot be read: ClientError: no route"),
        ("unreachable://unknown", "unknown/index.json: cannot be read: ClientError: name not"),
        ("unreachable://lost", "lost/index.json: cannot be read: ClientError: connection lost"),
        ("unreachable://lost/{0..3}.tar", "connection lost.*--data.index gives its path"),
        ("hf://datasets/owner/name", "hf://.*/index.json: cannot be read: .*offline"),
        ("hf:owner/name", "owner/name: cannot be opened as a data set"),
        ("elsewhere://bucket", "elsewhere://bucket/index.json: Protocol not known"),
    ],
)
def test_what_cannot_be_reached_is_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    root: str,
    message: str,
) -> None:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for command in ("check", "train"):
        option = ["--data.root", root, "--out", str(tmp_path)] if command == "train" else [root]
        assert main([command, *option]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_a_table_that_cannot_be_read_further_is_named() -> None:
    def rows() -> Iterator[Any]:
        yield {"image": {"bytes": b"1", "path": None}}
        raise ClientError("connection lost")

    class Table:
        num_shards = 1

        def shard(self, *_: int) -> Any:
            return self

        def skip(self, count: int) -> Any:
            return itertools.islice(rows(), count, None)

    shard = TableShard("owner/name/train", Table(), "image", 0, np.zeros(2, np.int32), 0)
    images = shard.read()
    assert next(images) == b"1"
    with pytest.raises(DataError, match="owner/name/train: cannot be read: ClientError"):
        next(images)


def test_long_names_of_images_are_reported_in_full(tmp_path: Path) -> None:
    name = f"{'long' * 40}.jpg"
    for split, label in itertools.product(("train", "val"), "ab"):
        file = tmp_path / "images" / split / label / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"no image")
    write_shards(open_folder(tmp_path / "images"), tmp_path / "out", size=1e6)
    samples = shard_splits(str(tmp_path / "out")).train
    names = {samples.name(0), samples.name(1)}
    assert names == {f"{tmp_path}/out/train-000000.tar: {label}/{name}" for label in "ab"}


@pytest.mark.parametrize("where", ["folder", "train alone", "table"])
def test_a_single_class_is_refused_by_train_and_reported_by_check(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """As it is in folders of images."""
    root = str(tmp_path / "shards")
    if where == "table":
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
        )
        image = {"bytes": image_bytes(0), "path": None}
        for split in ("train", "test"):
            table = {"image": [image] * 3, "label": [1] * 3}
            rows = datasets.Dataset.from_dict(table, features=features)
            rows.to_parquet(f"{root}/{split}.parquet")
    else:
        folder = open_folder(images)
        one = folder.train.subset(np.flatnonzero(folder.train.labels == 1))
        write_shards(replace(folder, train=one), Path(root), size=1e6, shards=3)
        root += "/train-{000000..000002}.tar" * (where == "train alone")
    for words in (["train", "--out", str(tmp_path / "run"), "--data.root"], ["check"]):
        assert main([*words, root]) == 1
        output = "".join(capsys.readouterr())
        assert re.search(r"all \d+ images are of one class, ödland; training needs two", output)
    assert "every image decoded" in output  # the shards themselves are as their index states
    assert ("compared with their index" in output) == (where != "table")
