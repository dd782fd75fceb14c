"""Images and index masks in folders beside each other -> samples, matched by file name."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from mobilevit.data.formats.folders import (
    VAL_FOLDERS,
    DataError,
    hash_order,
    images_below,
    is_folder,
    join_names,
    visible_entries,
)
from mobilevit.data.images import ImageError
from mobilevit.data.mask_classes import CLASS_FILES, named_by_place, numbered, stated_classes
from mobilevit.tasks.segmentation.dataset import MaskFiles, MaskSamples, read_mask
from mobilevit.utils.devices import available_cores

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation",
    "segmentationclass", "semantic_masks", "segmentations",
)  # fmt: skip
"""Names of the folders of masks, capitals apart."""
TRAIN_NAMES = ("train", "training", "train2017", "train2014")
VAL_NAMES = (*VAL_FOLDERS, "val2017", "val2014")
LOOK = 200
"""How many masks at most are read to number classes that have no names."""
MOST_NUMBERED = 1000
"""More classes than this are not numbered: such values are something else."""

# What tools add to a mask's name, or Cityscapes to an image's.
_MASK_ENDINGS = (
    "_gtFine_labelIds", "_labelIds", "_mask", "-mask", "_masks", "_labels", "_label",
    "_segmentation", "_seg", "_gt", "_L",
)  # fmt: skip
_IMAGE_ENDINGS = ("_leftImg8bit",)


@dataclass(frozen=True)
class Pair:
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path


class Pairs(NamedTuple):
    """Pairs of folders, by what they are for; `whole` has not been divided."""

    train: Pair | None = None
    val: Pair | None = None
    whole: Pair | None = None


def find_pairs(root: Path) -> Pairs | None:
    """Find folders of images and masks in `root`; None where there are none.

    `train` and `val` may stand above (train/images, train/masks) or below (images/train,
    masks/train). A folder of masks holds images and, directly, no JSON.

    Raises:
        DataError: several folders could hold the images, or the masks.
    """
    inside = folders_in(root)
    train, val = (
        next((pair for name in names if name in inside and (pair := _pair(inside[name]))), None)
        for names in (TRAIN_NAMES, VAL_NAMES)
    )
    if train or val:
        return Pairs(train=train, val=val)
    pair = _pair(root)
    if pair is None:
        return None
    images, masks = folders_in(pair.images), folders_in(pair.masks)
    train, val = (
        next((Pair(images[n], masks[n]) for n in names if n in images and n in masks), None)
        for names in (TRAIN_NAMES, VAL_NAMES)
    )
    return Pairs(train=train, val=val) if train or val else Pairs(whole=pair)


def open_pairs(
    root: Path, pairs: Sequence[Pair], *, classes: Sequence[str] | None, ignore: int
) -> tuple[list[MaskFiles], str]:
    """Samples of each pair, with the same classes, and how these were found.

    Files without a partner are no error here; they are in the samples' `unmatched`.

    Args:
        root: where `CLASS_FILES` are looked for.
        pairs: what to open.
        classes: names of the values 0, 1, ..., where no file names them; a name that is a number
            belongs to the value of that number. Where a file does, they say the order.
        ignore: value in the files that has no class. In a list of names its place counts, but has
            to be called void, ignored or unlabelled.

    Raises:
        DataError: no image of a pair has a mask; classes that cannot be used.
    """
    matched = [match_pair(pair) for pair in pairs]
    stated = stated_classes(root, ignore)
    if stated is not None:
        names, colours, how = stated.names, stated.colours, stated.file.name
    elif classes is not None:
        names, colours = named_by_place(classes, ignore, "the given classes"), None
        how = "given name"
    else:
        names, how = _look([mask for _, masks, _ in matched for mask in masks], ignore)
        colours = None
    numbering = numbered(names, ignore)
    samples = [
        MaskFiles(
            root=root,
            format="folders",
            origin=f"{pair.images} and {pair.masks}",
            classes=numbering.classes,
            ignore=numbering.ignore,
            values=numbering.values,
            unmatched=unmatched,
            images=images,
            masks=masks,
            colours=colours,
        )
        for pair, (images, masks, unmatched) in zip(pairs, matched, strict=True)
    ]
    if stated is not None and classes is not None:
        samples = [one.relabelled(classes) for one in samples]
    return samples, f"{len(samples[0].classes)} classes by {how}"


def hold_out(
    samples: MaskSamples, *, val_fraction: float, seed: int
) -> tuple[MaskSamples, MaskSamples]:
    """Divide samples: (to train on, to evaluate by).

    `val_fraction` of them is held out: rounded, at least one and not all. Which ones depends on
    nothing but `seed` and the image's path below the root, so most stay where they are when
    images are added.

    Raises:
        DataError: there are less than two.
        ValueError: `val_fraction` is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
    if len(samples) < 2:
        raise DataError(f"{samples.root}: has one image with a mask, so none can be held out")
    count = min(max(round(len(samples) * val_fraction), 1), len(samples) - 1)
    # Ranked by a hash rather than shuffled: a shuffle moves every file when one is added.
    ranked = sorted(
        range(len(samples)), key=lambda index: hash_order(samples.source(index), samples.root, seed)
    )
    return samples.some(sorted(ranked[count:])), samples.some(sorted(ranked[:count]))


def folders_in(folder: Path) -> dict[str, Path]:
    """The visible folders in a folder, by name in lower case."""
    return {
        entry.name.lower(): Path(entry.path)
        for entry in visible_entries(folder)
        if is_folder(entry)
    }


def _pair(folder: Path) -> Pair | None:
    """The folder of images and that of masks in a folder, if it has both."""
    inside = folders_in(folder)
    images = [inside[name] for name in IMAGE_FOLDERS if name in inside]
    masks = [inside[name] for name in MASK_FOLDERS if name in inside and _has_masks(inside[name])]
    if not images or not masks:
        return None
    for kind, found in (("images", images), ("masks", masks)):
        if len(found) > 1:
            names = join_names("folder", [path.name for path in found])
            raise DataError(f"{folder}: which of its {names} holds the {kind}? Leave one of them")
    return Pair(images[0], masks[0])


def _has_masks(folder: Path) -> bool:
    # With a JSON beside them, as COCO has it, images are no index masks.
    beside = any(entry.name.lower().endswith(".json") for entry in visible_entries(folder))
    return not beside and bool(images_below(folder))


Matched: TypeAlias = tuple[tuple[Path, ...], tuple[Path, ...], tuple[tuple[Path, str], ...]]


def match_pair(pair: Pair) -> Matched:
    """Images, their masks, and files that lack a partner with what they lack."""
    by_key: dict[str, list[Path]] = {}
    for path in images_below(pair.images):
        key = _key(path, pair.images)
        ending = next((end for end in _IMAGE_ENDINGS if key.endswith(end)), "")
        by_key.setdefault(key.removesuffix(ending), []).append(path)
    partners: dict[str, list[Path]] = {key: [] for key in by_key}
    unmatched: list[tuple[Path, str]] = []
    masks = images_below(pair.masks)
    for path in masks:
        key = _key(path, pair.masks)
        stems = (key, *(key.removesuffix(end) for end in _MASK_ENDINGS if key.endswith(end)))
        stem = next((stem for stem in stems if stem in by_key), None)
        if stem is None:
            unmatched.append((path, f"no image in {pair.images} has its name"))
        else:
            partners[stem].append(path)
    matched = []
    for key, images in by_key.items():
        if len(images) == len(partners[key]) == 1:
            matched.append((images[0], partners[key][0]))
        elif not partners[key]:
            unmatched += [(path, f"no mask in {pair.masks} has its name") for path in images]
        else:
            several = images if len(images) > 1 else partners[key]
            names = ", ".join(path.name for path in several)
            unmatched.append((several[0], f"several files have its name: {names}"))
    if not matched:
        raise DataError(
            f"{pair.images}: not one of its {sum(map(len, by_key.values()))} images has a mask "
            f"among the {len(masks)} of {pair.masks}; a mask is called as its image, such as "
            "1.jpg and 1.png"
        )
    found, theirs = zip(*matched, strict=True)
    return found, theirs, tuple(unmatched)


def _key(path: Path, folder: Path) -> str:
    """What an image and its mask have in common: the path in the folder, without extension."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _look(masks: Sequence[Path], ignore: int) -> tuple[dict[int, str], str]:
    """Number classes up to the largest value in some masks: names of values, and how it was."""
    chosen = [masks[int(at)] for at in np.linspace(0, len(masks) - 1, min(LOOK, len(masks)))]
    found: set[int] = set()
    errors = []
    with ThreadPoolExecutor(available_cores()) as executor:
        for values in executor.map(_values, chosen):
            if isinstance(values, ImageError):
                errors.append(values)
            else:
                found.update(values)
    if len(errors) == len(chosen):
        raise DataError(f"not one of {len(chosen)} masks can be read: {errors[0]}")
    if found - {ignore} <= {0}:
        raise DataError(
            f"{masks[0].parent}: its masks have no value but {', '.join(map(str, sorted(found)))}, "
            f"and {ignore} is ignored. If it is a class, say so in classes.json, such as "
            f'{{"background": 0, "object": {ignore}}}, and state another value to ignore'
        )
    largest = max(found - {ignore})
    if largest >= MOST_NUMBERED:
        raise DataError(
            f"{masks[0].parent}: its masks have values up to {largest}, too many to be numbered "
            'as classes; say which values are classes in classes.json, {"name": value, ...}'
        )
    how = (
        f"number, as there is no {' or '.join(CLASS_FILES[:2])}: {largest} is the largest value "
        f"in {len(chosen)} of {len(masks)} masks"
    )
    return {value: str(value) for value in range(largest + 1)}, how


def _values(mask: Path) -> list[int] | ImageError:
    try:
        return np.flatnonzero(np.bincount(read_mask(mask).ravel())).tolist()
    except ImageError as error:
        return error
