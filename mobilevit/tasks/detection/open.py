"""Recognise the kind of annotated images that lie somewhere; what to train on and evaluate by."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from mobilevit.data.formats.base import Reading, files_below, same_name, select, split_of
from mobilevit.data.formats.coco import looks_like_coco, read_coco
from mobilevit.data.formats.folders import VAL_FOLDERS, DataError, join_names
from mobilevit.data.formats.voc import looks_like_voc, read_voc
from mobilevit.data.formats.yolo import looks_like_data_yaml, looks_like_labels, read_yolo
from mobilevit.tasks.detection.dataset import BoxSamples, Format, relabelled, split_off

log = logging.getLogger(__name__)

EVERYTHING = ""
"""What the part of a data set is called that names no splits."""

_DEEP = 3
"""Folders below the data set's down to which JSON and YAML files are looked for."""
_OTHER_JSON = ("captions", "person", "panoptic", "stuff", "image")
"""How the names of COCO's JSON files begin that lie beside those of instances."""


@dataclass(frozen=True)
class BoxTrainVal:
    """What to train on and what to evaluate by, with the same classes."""

    train: BoxSamples
    val: BoxSamples
    note: str
    """How the two came about, for people to read."""


@dataclass(frozen=True)
class BoxSource:
    """An annotated set as it lies there."""

    root: Path
    format: Format
    parts: dict[str, tuple[Reading, Sequence[int]]]
    """Split -> the reading that it is part of, and its images there. Without splits there is one
    part, `EVERYTHING`."""


def find_boxes(root: str | os.PathLike[str], *, format: str = "auto") -> BoxSource:
    """Recognise and read images with boxes, all splits, whatever is wrong with them.

    Args:
        root: a folder, COCO's JSON or YOLO's `data.yaml`.
        format: `coco`, `voc` or `yolo`; `auto` looks which of them it is.

    Raises:
        DataError: nothing is there, nothing that is recognised, or it could be one or another.
        ValueError: `format` is another word.
    """
    if format not in ("auto", *get_args(Format)):
        raise ValueError(f"format must be auto, coco, voc or yolo, not {format!r}")
    root = Path(root)
    if ".." in root.parts:  # so that paths that are put together in different ways are equal
        root = root.resolve()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if root.is_file():
        return _from_file(root, format)
    images, others = files_below(root)
    jsons, yamls, xmls = (
        [Path(path) for path in others if path.lower().endswith(endings)]
        for endings in (".json", (".yaml", ".yml"), ".xml")
    )
    jsons = [path for path in jsons if len(path.relative_to(root).parts) <= _DEEP]
    yamls = [path for path in yamls if len(path.relative_to(root).parts) <= _DEEP]
    yamls = [path for path in yamls if looks_like_data_yaml(path)]
    cocos = [path for path in jsons if looks_like_coco(path)]
    if format == "auto":
        signs: dict[Format, bool] = {
            "coco": bool(cocos),
            "voc": any(map(looks_like_voc, xmls)),
            "yolo": bool(yamls) or looks_like_labels(images, others),
        }
        seen = [name for name, sign in signs.items() if sign]
        if len(seen) > 1:
            raise DataError(
                f"{root}: holds annotations in several formats, {' and '.join(seen)}; say which "
                f"to read, such as --data.format {seen[0]}"
            )
        kind = seen[0] if seen else None
    else:  # then what is wrong with the files is said when they are read
        stated = cast(Format, format)
        there = {"coco": jsons, "voc": xmls, "yolo": images or yamls}
        kind = stated if there[stated] else None
    if kind is None:
        raise DataError(f"{root}: {_nothing(root, format)}")
    if kind == "coco":
        return BoxSource(root, kind, _from_jsons(root, cocos or jsons))
    if kind == "voc":
        return _from_reading(root, read_voc(root))
    return _from_reading(root, read_yolo(_the_one(root, yamls, "YAML") if yamls else root))


def box_splits(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    val_fraction: float = 0.2,
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
) -> BoxTrainVal:
    """Find, or make, the images to train on and those to evaluate by.

    Splits that the data set names are taken: `train`, or else `trainval`, and the first of `val`,
    `valid`, `validation`, `test`. Where there is none to evaluate by, `val_fraction` of the images
    is held out, as in `split_off`. Classes are matched by name and are those of `train`.

    Args:
        root: as for `find_boxes`, and so is `format`.
        val_fraction: share of the images to hold out.
        seed: of the choice.
        on_bad: what to do about missing images and annotations that cannot be read: raise an
            error, or leave those images out and log a warning that counts them.

    Raises:
        DataError: as in `find_boxes`; something is wrong with the data; a class has boxes in `val`
            only; or there are no boxes in one of them.
        ValueError: an option is out of range.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
    source = find_boxes(root, format=format)
    names = list(source.parts)
    train_name = next((name for name in ("train", "trainval", EVERYTHING) if name in names), None)
    # All that is in VOC's val is in its trainval as well.
    held = [name for name in VAL_FOLDERS if name in names]
    if train_name == "trainval":
        held = [name for name in held if name == "test"]
    if train_name is None:
        raise DataError(f"{source.root}: has {join_names('split', names)} but nothing to train on")
    train = _part(source, train_name, on_bad)
    if held:
        val = _part(source, held[0], on_bad)
        train = _named_by_boxes(train, source.format)
        val = _as_in_train(val, train)
        note = f"train: {_called(source, train_name)} ({len(train)} images), "
        note += f"val: {_called(source, held[0])} ({len(val)} images)"
        if both := len({*train.files} & {*val.files}):
            note += f", of which {both} are in train too"
    else:
        whole = _named_by_boxes(train, source.format)
        train, val = split_off(whole, val_fraction, seed)
        what = f"has only {train_name}" if train_name else "names no splits"
        note = (
            f"{source.root} {what}: {val_fraction:.0%} of the images held out with seed {seed} "
            f"({len(train)} + {len(val)} images)"
        )
    for name, samples in (("train", train), ("val", val)):
        if not samples.usable().any():
            raise DataError(f"{source.root}: no boxes in {name}, {len(samples)} images")
    kind = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO"}[source.format]
    reading, _ = source.parts[train_name]
    return BoxTrainVal(train, val, "; ".join([f"{kind}: {note}", *reading.remarks]))


def box_evaluation(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    split: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
) -> BoxSamples:
    """Find the images to evaluate on.

    Labels count the classes found there; `relabelled` turns them into those of a model.

    Args:
        root: as for `find_boxes`, and so is `format`.
        split: the name of a split; unless given the first of `val`, `valid`, `validation`, `test`
            that is there, else all.
        on_bad: as for `box_splits`.

    Raises:
        DataError: as in `find_boxes`; there is no such split; or something is wrong with it.
    """
    source = find_boxes(root, format=format)
    if split is None:
        split = next((name for name in VAL_FOLDERS if name in source.parts), None)
        if split is None:
            split = next(iter(source.parts))
            count = len(source.parts[split][1])
            log.info("%s: all %d images are evaluated, trained on or not", source.root, count)
    elif (split := same_name(split)) not in source.parts:
        named = [name for name in source.parts if name != EVERYTHING]
        there = f"only {', '.join(named)}" if named else "it names no splits"
        raise DataError(f"{source.root}: has no split {split!r}, {there}")
    return _part(source, split, on_bad)


def _from_file(file: Path, format: str) -> BoxSource:
    """What one file describes."""
    suffix = file.suffix.lower()
    if suffix == ".json" and format in ("auto", "coco"):
        return _from_reading(file, read_coco(file))
    if suffix in (".yaml", ".yml") and format in ("auto", "yolo"):
        return _from_reading(file, read_yolo(file))
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"):
        raise DataError(f"{file}: is an archive; unpack it, and give the folder")
    wanted = {"coco": "a .json", "yolo": "a data.yaml", "voc": "no file"}.get(format, "a .json")
    raise DataError(
        f"{file}: a folder is needed, COCO's JSON or YOLO's data.yaml; as {format} {wanted} is read"
    )


def _from_reading(root: Path, reading: Reading) -> BoxSource:
    everything = {EVERYTHING: range(len(reading.samples))}
    splits = reading.splits or everything
    parts = {name: (reading, images) for name, images in splits.items()}
    return BoxSource(root, reading.samples.format, parts)


def _from_jsons(root: Path, jsons: list[Path]) -> dict[str, tuple[Reading, Sequence[int]]]:
    """COCO has a JSON for each split; which one, its name says, else that of its folder."""
    by_split: dict[str, list[Path]] = {}
    for path in jsons:
        words = path.stem.replace("-", "_").replace(".", "_").split("_")
        folders = path.relative_to(root).parent.parts
        named = (split_of(word) for word in [*words, *reversed(folders)])
        split = next((name for name in named if name is not None), EVERYTHING)
        by_split.setdefault(split, []).append(path)
    if len(by_split) > 1:  # beside those that say it, others are something else
        by_split.pop(EVERYTHING, None)
    parts: dict[str, tuple[Reading, Sequence[int]]] = {}
    for split, paths in by_split.items():
        instances = [path for path in paths if not path.stem.startswith(_OTHER_JSON)]
        reading = read_coco(_the_one(root, instances or paths, "JSON"), root)
        parts[split] = reading, range(len(reading.samples))
    return parts


def _the_one(root: Path, paths: list[Path], kind: str) -> Path:
    """The only one of several files; of YAML files the one called `data`, if there is."""
    called = [path for path in paths if path.stem.lower() == "data"]
    chosen = called if len(called) == 1 else paths
    if len(chosen) > 1:
        listing = ", ".join(str(path.relative_to(root)) for path in chosen[:5])
        raise DataError(f"{root}: holds several {kind} files, {listing}; give the one to read")
    return chosen[0]


def _part(source: BoxSource, name: str, on_bad: Literal["error", "skip"]) -> BoxSamples:
    reading, images = source.parts[name]
    return select(reading, images, split=name, on_bad=on_bad)


def _called(source: BoxSource, name: str) -> str:
    """What to call a split in a note: its name, or the file that it is."""
    reading, _ = source.parts[name]
    if source.format != "coco":
        return name
    return Path(reading.samples.annotated_by[0]).name


def _named_by_boxes(samples: BoxSamples, kind: Format) -> BoxSamples:
    """VOC's classes are the names that occur, so they are those of the training part only."""
    if kind != "voc":
        return samples
    used = [samples.classes[label] for label in np.unique(samples.labels)]
    return replace(relabelled(samples, used), category_ids=tuple(range(1, len(used) + 1)))


def _as_in_train(val: BoxSamples, train: BoxSamples) -> BoxSamples:
    """Label as in training; what is labelled otherwise is named."""
    used = {val.classes[label] for label in np.unique(val.labels)}
    if unknown := sorted(used - set(train.classes)):
        raise DataError(
            f"{val.root}: {join_names('class', unknown)} in val but not in train; classes are "
            "matched by name"
        )
    val = relabelled(val, train.classes)
    return replace(val, category_ids=train.category_ids) if val.format == "voc" else val


def _nothing(root: Path, format: str) -> str:
    """What was looked for, and what is there instead."""
    wanted = {
        "coco": "a COCO .json with images, annotations and categories",
        "voc": "Pascal VOC .xml files",
        "yolo": "YOLO's data.yaml or .txt labels of images' names",
    }
    entries = sorted(os.listdir(root))
    there = ", ".join(entries[:10]) + (", ..." if len(entries) > 10 else "")
    looked = wanted.get(format, ", ".join(wanted.values()))
    return f"no boxes recognised; looked for {looked}; it holds {there or 'nothing'}"
