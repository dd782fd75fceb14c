"""A folder of images -> tar shards with an index; or an index for shards that others wrote."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.data.formats.folders import DataError, Split, TrainVal
from mobilevit.data.shards.index import (
    INDEX,
    UNFINISHED,
    Part,
    ShardIndex,
    need_scale,
)
from mobilevit.data.shards.read import Found, look_through
from mobilevit.utils.files import replace_file, write_file
from mobilevit.utils.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Planned:
    """A shard to write."""

    path: Path
    split: Split
    samples: np.ndarray
    """Places in the split, in the order in which they are written."""


def write_shards(
    data: TrainVal,
    out: Path,
    *,
    size: float,
    shards: int | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> ShardIndex:
    """Write images, as their files are, into shards; shuffled, so that each is a fair sample.

    Each shard is written under another name, renamed, and read once more; the index comes last.
    What was begun is gone on with: shards that are there are read, and not written again.

    Args:
        data: what to write.
        out: folder to write to; new, empty, or what a call with the same images has left there.
        size: bytes of a shard, about.
        shards: or how many shards of train there are.
        seed: of the shuffling.
        workers: shards that are written at the same time.
        progress: show a bar, where there is a terminal.

    Raises:
        DataError: `out` holds something else; or an image cannot be read any more.
        OSError: it cannot be written.
    """
    need_scale("webdataset")
    plans = {"train": data.train, "val": data.val}
    sizes = {name: [os.stat(path).st_size for path in split.paths] for name, split in plans.items()}
    each = len(data.train) / shards if shards else None
    planned: dict[str, list[_Planned]] = {}
    for number, (name, split) in enumerate(plans.items()):
        count = round(len(split) / each) if each else round(sum(sizes[name]) / size)
        order = np.random.default_rng((seed, 5, number)).permutation(len(split))
        parts = np.array_split(order, min(max(count, 1), len(split)))
        planned[name] = [
            _Planned(out / f"{name}-{place:06d}.tar", split, part)
            for place, part in enumerate(parts)
        ]
    identity = _identity(plans, sizes, planned, seed)
    _claim(out, identity)
    everything = [plan for part in planned.values() for plan in part]
    found = _all(everything, _written, lambda plan: len(plan.samples), workers, progress)
    results = iter(found)
    index = ShardIndex(
        data.train.classes,
        {
            name: _part(list(itertools.islice(results, len(part))), data.train.classes)
            for name, part in planned.items()
        },
        data.note,
        identity,
    )
    index.write(out)
    (out / UNFINISHED).unlink()
    return index


def index_shards(
    splits: dict[str, list[str]],
    out: Path,
    *,
    classes: Sequence[str] | None,
    workers: int = 1,
    progress: bool = True,
) -> ShardIndex:
    """Read shards that others wrote, once, and write an index of them.

    Args:
        splits: split -> places of its shards.
        out: folder to write the index to.
        classes: names of the classes; of shards whose `cls` says names, and not numbers, those.
        workers: shards that are read at the same time.
        progress: show a bar, where there is a terminal.

    Raises:
        DataError: a shard cannot be read; or what `cls` says is no class.
    """
    if (out / INDEX).exists():
        raise DataError(f"{out}: holds an index already; choose another folder")
    places = [place for part in splits.values() for place in part]
    files = [_file_name(place) for place in places]
    if twice := sorted({file for file in files if files.count(file) > 1}):
        raise DataError(f"several shards are called {twice[0]}; names of shards must differ")
    pairs = list(zip(places, files, strict=True))
    found = _all(pairs, lambda pair: look_through(*pair), lambda _: 1, workers, progress)
    texts = sorted({text for one in found for text in one.labels})
    if classes is None:
        if all(map(str.isdecimal, texts)):
            raise DataError(
                f"the shards number their classes, {min(texts, key=int)} to {max(texts, key=int)}, "
                "and do not name them: give the names, in this order, with --classes"
            )
        classes = texts
    results = iter(found)
    index = ShardIndex(
        tuple(classes),
        {
            name: _part(list(itertools.islice(results, len(part))), classes)
            for name, part in splits.items()
        },
        f"{len(places)} shards, {places[0]} and others",
    )
    out.mkdir(parents=True, exist_ok=True)
    index.write(out)
    return index


def _file_name(place: str) -> str:
    """What the index calls a shard: the last name in its place that ends with .tar."""
    names = re.findall(r"[^/\s'\"]+\.tar", place)
    if not names:
        raise DataError(f"{place}: names no .tar file, by which to know it again")
    return str(names[-1])


def _part(found: Sequence[Found], classes: Sequence[str]) -> Part:
    """One split: numbers and names of classes become labels."""
    numbers = {name: number for number, name in enumerate(classes)}
    numbers |= {str(number): number for number in range(len(classes))}
    for one in found:
        for place, text in enumerate(one.labels):
            if text not in numbers:
                raise DataError(
                    f"{one.shard.file}: sample {place} is of class {text!r}, which is none of the "
                    f"{len(classes)} classes and none of their numbers"
                )
            one.rows["label"][place] = numbers[text]
    rows = np.concatenate([one.rows for one in found])
    return Part(tuple(one.shard for one in found), rows)


def _identity(
    splits: dict[str, Split],
    sizes: dict[str, list[int]],
    planned: dict[str, list[_Planned]],
    seed: int,
) -> str:
    """What tells sets of shards apart: files, their sizes and classes, and how they are divided."""
    digest = hashlib.sha256(repr((seed, [len(part) for part in planned.values()])).encode())
    for name, split in splits.items():
        for path, label, size in zip(split.paths, split.labels, sizes[name], strict=True):
            digest.update(
                f"{path.relative_to(split.root)}\0{label}\0{size}\0".encode(errors="replace")
            )
    return digest.hexdigest()


def _claim(out: Path, identity: str) -> None:
    """See that the folder is free, or holds the begin of the same shards."""
    note = out / UNFINISHED
    if (out / INDEX).exists():
        raise DataError(f"{out}: holds shards already; choose another folder")
    if note.exists():
        if json.loads(note.read_text()).get("identity") != identity:
            raise DataError(
                f"{out}: holds the begin of shards of other images, or with other options; "
                "choose another folder, or remove it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise DataError(f"{out}: is not empty; choose another folder")
    write_file(note, json.dumps({"identity": identity}).encode())


def _written(plan: _Planned) -> Found:
    """Write a shard, unless it is there; and read it."""
    from webdataset import TarWriter

    path = plan.path
    if not path.exists():
        for left in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
            left.unlink()
        with replace_file(path) as fresh, fresh.open("wb") as file:
            writer = TarWriter(file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT")
            taken: set[str] = set()
            for sample in plan.samples.tolist():
                source = plan.split.paths[sample]
                key, extension = _key(source, plan.split.root, taken)
                label = str(plan.split.labels[sample]).encode()
                writer.write({"__key__": key, extension: source.read_bytes(), "cls": label})
            writer.close()
    found = look_through(str(path), path.name)
    expected = tuple(str(plan.split.labels[sample]) for sample in plan.samples.tolist())
    if found.labels != expected:
        raise DataError(f"{path}: is not what belongs there; remove it, and write it again")
    return found


def _key(source: Path, root: Path, taken: set[str]) -> tuple[str, str]:
    """A sample's key, as webdataset wants it, and its extension: `daisy/12` and `jpg`.

    Keys end at the first dot, and are not taken from names that begin and end with `__`.
    """
    name = source.relative_to(root).with_suffix("").as_posix()
    name = unicodedata.normalize("NFC", name).encode(errors="replace").decode()
    folder, slash, stem = name.rpartition("/")
    key = folder + slash + stem.replace(".", "_")
    if key.startswith("__"):
        key = f"x{key}"
    while key in taken:
        key += f"-{len(taken)}"
    taken.add(key)
    return key, source.suffix[1:].lower()


def _all(
    items: Sequence[Any],
    work: Callable[[Any], Found],
    weight: Callable[[Any], int],
    workers: int,
    progress: bool,
) -> list[Found]:
    """Work on all items, several at a time; the first error ends it."""
    with (
        progress_bar("shards", sum(map(weight, items)), show=progress) as advance,
        ThreadPoolExecutor(workers) as executor,
    ):
        waiting = {executor.submit(work, item): item for item in items}
        try:
            for done in as_completed(waiting):
                done.result()  # raises what went wrong
                advance(weight(waiting[done]))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in waiting]
