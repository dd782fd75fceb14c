"""A folder -> what to train a segmentation network on and what to evaluate it by, in any format."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar, get_args

from mobilevit.data.formats.folders import DataError, is_folder, visible_entries
from mobilevit.data.formats.mask_folders import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    TRAIN_NAMES,
    VAL_NAMES,
    Pairs,
    find_pairs,
    hold_out,
    open_pairs,
)
from mobilevit.data.images import ImageError, image_facts, open_image
from mobilevit.data.mask_classes import IGNORE
from mobilevit.data.mask_coco import CocoKind, find_coco, open_coco
from mobilevit.data.mask_sets import (
    Part,
    find_ade20k,
    find_cityscapes,
    find_voc,
    open_ade20k,
    open_cityscapes,
    open_voc,
    surely_ade20k,
)
from mobilevit.data.validate import has_end_marker, unreadable
from mobilevit.tasks.segmentation.dataset import MaskSamples, MaskTrainVal
from mobilevit.utils.devices import available_cores
from mobilevit.utils.progress import progress_bar

log = logging.getLogger(__name__)

T = TypeVar("T")
MaskFormat: TypeAlias = Literal[
    "auto", "folders", "voc", "coco", "coco_panoptic", "coco_voc", "ade20k", "cityscapes"
]
FEW = 10
"""So many bad files are written out in an error."""


class _Known(NamedTuple):
    """A data set of known form."""

    find: Callable[[Path], Path | None]
    """The folder that has its form, in or at a given one."""
    open: Callable[[Path, Part], MaskSamples]


def _open_coco_as_voc(root: Path, part: Part) -> MaskSamples:
    kind: CocoKind = "instances" if find_coco(root, "instances") else "panoptic"
    return open_coco(root, part, kind=kind, voc=True)


_KNOWN: dict[str, _Known] = {
    "cityscapes": _Known(find_cityscapes, open_cityscapes),
    "voc": _Known(find_voc, open_voc),
    "ade20k": _Known(find_ade20k, open_ade20k),
    "coco": _Known(partial(find_coco, kind="instances"), partial(open_coco, kind="instances")),
    "coco_panoptic": _Known(
        partial(find_coco, kind="panoptic"), partial(open_coco, kind="panoptic")
    ),
    "coco_voc": _Known(
        lambda root: find_coco(root, "instances") or find_coco(root, "panoptic"), _open_coco_as_voc
    ),
}


def mask_splits(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    classes: Sequence[str] | None = None,
    ignore: int = IGNORE,
    val_fraction: float = 0.2,
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
) -> MaskTrainVal:
    """Find, or make, images with masks to train on and to evaluate by.

    Recognised are, in this order: Cityscapes, Pascal VOC, ADE20K, folders of images and masks
    beside each other, COCO. Folders that are not divided into train and val are divided here.

    Args:
        root: the folder of the data set.
        format: what it is, where it could be several things; `coco_voc` is COCO with VOC's classes.
        classes: the classes in their order, such as a model's. They are matched by name; in folders
            without a file that names classes, they name the values (see `open_pairs`).
        ignore: in folders, the value that has no class; the other formats have their own.
        val_fraction: what share is held out of folders that are not divided; see `hold_out`.
        seed: which ones are.
        on_bad: what to do about images and masks that lack a partner, cannot be read or do not
            fit: raise an error that counts them, or leave them out and log a warning that names
            them. What is damaged within, or a value that is no class, is only found where they are
            left out, by decoding all; else when it is read.

    Raises:
        DataError: nothing is recognised; bad files; or what is there cannot be used.
        ValueError: `val_fraction` is not between 0 and 1, or a word is not one of those above.
    """
    data = find_mask_splits(
        root, format=format, classes=classes, ignore=ignore, val_fraction=val_fraction, seed=seed
    )
    train, val = _usable([data.train, data.val], on_bad)
    lost = len(data.train) + len(data.val) - len(train) - len(val)
    note = f"{data.note}; of the images {lost} left out" if lost else data.note
    return MaskTrainVal(train, val, note)


def mask_evaluation(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    classes: Sequence[str] | None = None,
    ignore: int = IGNORE,
    on_bad: Literal["error", "skip"] = "error",
) -> MaskSamples:
    """Find images with masks to evaluate on: what stands beside train, or all of a folder.

    Arguments and errors are those of `mask_splits`.
    """
    root = Path(root)
    base, known = _recognise(root, format, ignore)
    if known is None:
        pairs = _pairs(base)
        chosen = pairs.whole or pairs.val
        if chosen is None:
            raise _alone(root, "train", VAL_NAMES)
        (samples,), _ = open_pairs(base, [chosen], classes=classes, ignore=ignore)
        if pairs.whole is not None:
            log.info("%s: all %d images are evaluated, trained on or not", root, len(samples))
        return _usable([samples], on_bad)[0]
    found = known.open(base, "val")
    return _usable([found if classes is None else found.relabelled(classes)], on_bad)[0]


def find_mask_splits(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    classes: Sequence[str] | None = None,
    ignore: int = IGNORE,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> MaskTrainVal:
    """As `mask_splits`, but files are not looked at, and those without a partner are no error.

    They are in the samples' `unmatched`.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
    root = Path(root)
    base, known = _recognise(root, format, ignore)
    if known is not None:
        train, val = known.open(base, "train"), known.open(base, "val")
        train = train if classes is None else train.relabelled(classes)
        if val.classes != train.classes:
            val = val.relabelled(train.classes)
        return MaskTrainVal(train, val, f"{train.format}; {_told(train, val)}")
    pairs = _pairs(base)
    if pairs.whole is not None:
        (whole,), how = open_pairs(base, [pairs.whole], classes=classes, ignore=ignore)
        train, val = hold_out(whole, val_fraction=val_fraction, seed=seed)
        note = (
            f"{whole.origin} are not divided into train and val: {val_fraction:.0%} held out "
            f"with seed {seed} ({len(train)} + {len(val)} images)"
        )
        # Counted once, not for both.
        return MaskTrainVal(train, replace(val, unmatched=()), f"{note}; {how}")
    if pairs.train is None or pairs.val is None:
        missing = VAL_NAMES if pairs.val is None else TRAIN_NAMES
        raise _alone(root, "train" if pairs.val is None else "val", missing)
    (train, val), how = open_pairs(base, [pairs.train, pairs.val], classes=classes, ignore=ignore)
    return MaskTrainVal(train, val, f"{_told(train, val)}; {how}")


def each(
    work: Callable[[int], T], count: int, *, workers: int | None = None, progress: bool = True
) -> list[T]:
    """Do `work` for 0 to `count` - 1, in threads; the results in this order.

    A progress bar is shown where there is a terminal. Decoding runs outside Python's lock.
    """
    results = []
    with (
        progress_bar("checking masks", count, show=progress) as advance,
        ThreadPoolExecutor(available_cores() if workers is None else workers) as executor,
    ):
        for result in executor.map(work, range(count)):
            results.append(result)
            advance(1)
    return results


def _recognise(root: Path, format: str, ignore: int) -> tuple[Path, _Known | None]:
    """The folder to open, and how; None: as folders of images and masks."""
    if format not in get_args(MaskFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(MaskFormat))}, not {format!r}")
    if not root.is_dir():
        raise DataError(
            f"{root}: {'is a file, not a folder' if root.exists() else 'no such folder'}"
        )
    if format == "auto":
        format = next((name for name, find in _AUTO.items() if find(root)), "none")
    if format == "folders":
        return root, None
    known = _KNOWN.get(format)
    base = known.find(root) if known else None
    if base is None:
        raise _not_recognised(root, format)
    if ignore != IGNORE:
        raise DataError(
            f"{root}: is read as {format}, which says itself what is ignored; ignore {ignore} is "
            "for folders of images and masks"
        )
    return base, known


_AUTO: dict[str, Callable[[Path], object]] = {
    "cityscapes": find_cityscapes,
    "voc": find_voc,
    "ade20k": surely_ade20k,
    "folders": find_pairs,
    "coco": _KNOWN["coco"].find,
    "coco_panoptic": _KNOWN["coco_panoptic"].find,
}


def _pairs(root: Path) -> Pairs:
    pairs = find_pairs(root)
    if pairs is None:
        raise _not_recognised(root, "folders")
    return pairs


def _not_recognised(root: Path, format: str) -> DataError:
    names = [entry.name + "/" * is_folder(entry) for entry in visible_entries(root)]
    listing = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
    what = "no data set with masks" if format == "none" else f"nothing that could be {format}"
    return DataError(
        f"{root}: {what} is recognised. Looked for were a folder of images "
        f"({', '.join(IMAGE_FOLDERS)}) and one of masks ({', '.join(MASK_FOLDERS)}), with train "
        "and val above or below or neither; Pascal VOC (JPEGImages and "
        "ImageSets/Segmentation/val.txt); COCO (annotations/instances_*.json or panoptic_*.json); "
        "ADE20K (images/validation, annotations/validation); Cityscapes (leftImg8bit, gtFine). "
        f"There {'is' if len(names) == 1 else 'are'}: {listing or 'nothing'}"
    )


def _alone(root: Path, there: str, missing: Sequence[str]) -> DataError:
    return DataError(
        f"{root}: has images and masks for {there}, but none for {', '.join(missing)}; add one"
    )


def _told(train: MaskSamples, val: MaskSamples) -> str:
    return f"train: {train.origin} ({len(train)} images), val: {val.origin} ({len(val)} images)"


def _usable(parts: Sequence[MaskSamples], on_bad: str) -> list[MaskSamples]:
    """The samples without those that cannot be used, or an error about these."""
    if on_bad not in ("error", "skip"):
        raise ValueError(f"on_bad must be error or skip, not {on_bad!r}")
    bad = {str(path): reason for samples in parts for path, reason in samples.unmatched}
    kept = []
    for samples in parts:
        look = partial(_quickly, samples) if on_bad == "error" else partial(_fully, samples)
        if on_bad == "error":
            bad |= {str(path): why for path, why in unreadable(samples.images).items()}
        found = each(look, len(samples))
        bad |= {error.source: error.reason for error in found if error}
        kept.append([index for index, error in enumerate(found) if not error])
    if not bad:
        return list(parts)
    lines = [f"  {path}: {reason}" for path, reason in bad.items()]
    listing = "\n".join(lines[:FEW]) + ("\n  ..." if lines[FEW:] else "")
    if on_bad == "error":
        raise DataError(
            f"{len(bad)} files cannot be used; mend or remove them, or leave them out by "
            f"--data.on_bad skip; mobilevit check names all:\n{listing}"
        )
    log.warning("%d skipped; mobilevit check names all:\n%s", len(bad), listing)
    for samples, indices in zip(parts, kept, strict=True):
        if not indices:
            raise DataError(f"{samples.origin}: not one of {len(samples)} images can be used")
    return [
        replace(samples.some(indices), unmatched=())
        for samples, indices in zip(parts, kept, strict=True)
    ]


def _quickly(samples: MaskSamples, index: int) -> ImageError | None:
    """Why a sample cannot be used, as far as headers and file ends tell."""
    try:
        samples.turn(index)
        file = samples.mask_file(index)
        if file is not None and not has_end_marker(file, image_facts(file).format):
            samples.read(index)
    except ImageError as error:
        return error
    return None


def _fully(samples: MaskSamples, index: int) -> ImageError | None:
    """Why a sample cannot be used."""
    try:
        open_image(samples.source(index))
        samples.mask(index)
    except ImageError as error:
        return error
    return None
