"""Writing images as tar shards, and an index for shards that others wrote."""

import hashlib
import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.shards.index import INDEX, UNFINISHED, ShardIndex, require_scale
from mobilevit.data.shards.tar import TarShard, index_tar, tar_name
from mobilevit.data.splits import LabelSamples, Splits
from mobilevit.utils.files import remove_leftovers, replace_file, write_file
from mobilevit.utils.progress import map_parallel

LabelledTar: TypeAlias = tuple[TarShard, list[str]]
"""A shard without labels, and the text of each sample's `cls`."""


@dataclass(frozen=True)
class _Plan:
    path: Path
    split: LabelSamples
    samples: np.ndarray
    """Indices in the split, in the order in which they are written."""


def write_shards(
    data: Splits[LabelSamples],
    out: Path,
    *,
    size: float,
    shards: int | None = None,
    seed: int = 0,
    workers: int = 1,
) -> ShardIndex:
    """Write image files into shards, unchanged, and shuffled so that each shard is a fair sample.

    Each shard is written under another name, renamed, and read once; the index is written last. If
    this is interrupted, the same call continues: existing shards are read, not written.

    Args:
        out: folder to write to: new, empty, or left by an interrupted call with the same images.
        size: approximate size of a shard in bytes.
        shards: number of shards of train, instead of the size.
        workers: shards that are written at the same time.

    Raises:
        DataError: `out` holds something else, or an image can no longer be read.
    """
    require_scale("webdataset")
    splits = {"train": data.train, "val": data.val}
    digest = hashlib.sha256(repr((seed, size, shards)).encode())
    plans: dict[str, list[_Plan]] = {}
    for number, (name, split) in enumerate(splits.items()):
        total = 0
        for sample, label in enumerate(split.labels):
            path = Path(split.name(sample))
            length = path.stat().st_size
            total += length
            entry = f"{path.relative_to(split.root)}\0{label}\0{length}\0"
            digest.update(entry.encode(errors="replace"))
        exact = len(split) * shards / len(data.train) if shards else total / size
        order = np.random.default_rng((seed, 5, number)).permutation(len(split))
        parts = np.array_split(order, min(max(round(exact), 1), len(split)))
        plans[name] = [
            _Plan(out / f"{name}-{place:06d}.tar", split, part) for place, part in enumerate(parts)
        ]
    identity = digest.hexdigest()
    _claim(out, identity)
    tars = {
        name: list(map_parallel(_write, parts, f"{name} shards", workers=workers))
        for name, parts in plans.items()
    }
    index = _index(tars, data.train.classes, data.note, identity)
    index.write(out)
    (out / UNFINISHED).unlink()
    return index


def index_shards(
    splits: dict[str, list[str]],
    out: Path,
    *,
    classes: Sequence[str] | None,
    workers: int = 1,
) -> ShardIndex:
    """Read shards that others wrote, once, and write an index of them.

    Args:
        splits: the locations of each split's shards.
        classes: class names; by default the names in `cls`, if those are not numbers.
        workers: shards that are read at the same time.

    Raises:
        DataError: a shard cannot be read, or a sample is of an unknown class.
    """
    if (out / INDEX).exists():
        raise DataError(f"{out}: holds an index already; choose another folder")
    locations = [location for split in splits.values() for location in split]
    name, count = Counter(map(tar_name, locations)).most_common(1)[0]
    if count > 1:
        raise DataError(f"several shards are named {name}; names must be unique")
    tars = {
        name: list(map_parallel(index_tar, split, f"{name} shards", workers=workers))
        for name, split in splits.items()
    }
    labels = sorted({label for split in tars.values() for _, texts in split for label in texts})
    if classes is None and all(map(str.isdecimal, labels)):
        raise DataError(
            f"the shards number their classes, {min(labels, key=int)} to {max(labels, key=int)}, "
            "and do not name them: give the names, in this order, with --classes"
        )
    index = _index(tars, classes or labels, f"{len(locations)} shards, {locations[0]} and others")
    out.mkdir(parents=True, exist_ok=True)
    index.write(out)
    return index


def _index(
    tars: Mapping[str, Sequence[LabelledTar]],
    classes: Sequence[str],
    note: str,
    identity: str = "",
) -> ShardIndex:
    """Set the labels of each split's shards."""
    numbers = {str(number): number for number in range(len(classes))}
    numbers = {name: number for number, name in enumerate(classes)} | numbers
    for shard, texts in itertools.chain(*tars.values()):
        if unknown := [position for position, text in enumerate(texts) if text not in numbers]:
            raise DataError(
                f"{shard.file}: sample {unknown[0]} is of class {texts[unknown[0]]!r}, which is "
                f"neither a name nor a number of the {len(classes)} classes"
            )
        shard.rows["label"] = [numbers[text] for text in texts]
    shards = {name: [shard for shard, _ in split] for name, split in tars.items()}
    return ShardIndex(tuple(classes), shards, note, identity)


def _claim(out: Path, identity: str) -> None:
    """Check that the folder is free, or holds unfinished shards of the same images."""
    note = out / UNFINISHED
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    if (out / INDEX).exists():
        raise DataError(f"{out}: holds shards already; choose another folder")
    if note.exists():
        if json.loads(note.read_text()).get("identity") != identity:
            raise DataError(
                f"{out}: holds unfinished shards of other images, or with other options; choose "
                "another folder, or remove it"
            )
        return
    if any(out.iterdir()):
        raise DataError(f"{out}: is not empty; choose another folder")
    write_file(note, json.dumps({"identity": identity}))


def _write(plan: _Plan) -> LabelledTar:
    """Write a shard unless it exists, and read it."""
    from webdataset import TarWriter

    labels = [str(plan.split.labels[sample]) for sample in plan.samples.tolist()]
    if not plan.path.exists():
        with replace_file(plan.path) as fresh, fresh.open("wb") as file:
            writer = TarWriter(file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT")
            used: set[str] = set()
            for sample, label in zip(plan.samples.tolist(), labels, strict=True):
                source = Path(plan.split.name(sample))
                key = _unique_key(source, plan.split.root, used)
                image = {source.suffix[1:].lower(): source.read_bytes()}
                writer.write({"__key__": key, **image, "cls": label.encode()})
            writer.close()
    shard, written = index_tar(str(plan.path))
    if written != labels:
        raise DataError(f"{plan.path}: is another shard; remove it to have it written again")
    return shard, written


def _unique_key(source: Path, root: Path, used: set[str]) -> str:
    """A sample's key, such as `daisy/12`, that webdataset reads back unchanged."""
    name = source.relative_to(root).with_suffix("").as_posix()
    name = unicodedata.normalize("NFC", name).encode(errors="replace").decode()
    folder, slash, stem = name.rpartition("/")
    # webdataset ends keys at the first dot, and ignores names that begin and end with `__`.
    key = folder + slash + stem.replace(".", "_")
    if key.startswith("__"):
        key = f"x{key}"
    while key in used:
        key += f"-{len(used)}"
    used.add(key)
    return key
