"""Folders of images and of their masks, matched by file name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import (
    EVERYTHING,
    IGNORE,
    Content,
    DatasetBuilder,
    Format,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.files import (
    FileTree,
    Paths,
    join_names,
    list_folders,
    list_images,
    visible_entries,
)
from mobilevit.data.formats.masks import (
    CLASS_FILES,
    ClassValues,
    Colours,
    MaskFiles,
    class_values,
    names_by_value,
    read_class_file,
    read_mask,
)
from mobilevit.data.images import ImageError
from mobilevit.utils.devices import available_cores

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation",
    "segmentationclass", "semantic_masks", "segmentations",
)  # fmt: skip
SPLIT_FOLDERS = {
    "train": ("train", "training", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "test", "val2017", "val2014"),
}
MAX_LOOKS = 200
"""At most this many masks are read to number classes without names."""
MAX_NUMBERED = 1000
"""Values from this one on are too large to be numbered as classes."""
UNMATCHED_FILES = "images and masks that do not match"

# What tools append to the names of masks, and Cityscapes to those of images.
_MASK_SUFFIXES = (
    "_gtFine_labelIds", "_labelIds", "_mask", "-mask", "_masks", "_labels", "_label",
    "_segmentation", "_seg", "_gt", "_L",
)  # fmt: skip
_IMAGE_SUFFIXES = ("_leftImg8bit",)


class FolderPair(NamedTuple):
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class Matches:
    """Images and masks of a pair of folders."""

    pairs: list[tuple[Path, Path]]
    unmatched: list[tuple[Path, str]]
    """Files without a partner, and what they lack."""


def find_folders(root: Path) -> dict[str, FolderPair]:
    """Split -> its folders of images and masks in `root`; empty if there are none.

    `train` and `val` may be above (train/images, train/masks) or below (images/train, masks/train);
    otherwise there is one pair for `EVERYTHING`. A folder of masks holds images and, directly, no
    JSON.
    """
    inside = list_folders(root)
    found = {
        split: pair
        for split, names in SPLIT_FOLDERS.items()
        if (pair := _first(_find_pair(inside[name]) for name in names if name in inside))
    }
    if found:
        return found
    pair = _find_pair(root)
    if pair is None:
        return {}
    images, masks = list_folders(pair.images), list_folders(pair.masks)
    return {
        split: below
        for split, names in SPLIT_FOLDERS.items()
        if (
            below := _first(
                FolderPair(images[n], masks[n]) for n in names if n in images and n in masks
            )
        )
    } or {EVERYTHING: pair}


def read_masks(root: Path, options: ReadOptions) -> ParsedDataset:
    """Read the classes, and match images and masks.

    Classes are those of the first of `CLASS_FILES` in `root`; else `options.classes` name the
    values 0, 1, ...; else they are numbered up to the largest value in some masks.
    """
    folders = find_folders(root)
    if "train" in folders and "val" not in folders:
        names = ", ".join(SPLIT_FOLDERS["val"])
        raise DataError(f"{root}: has images and masks for train, but none for {names}; add one")
    matches = {split: match_pair(pair) for split, pair in folders.items()}
    ignore, given = options.ignore, options.classes
    stated = read_class_file(root, ignore)
    if stated is not None:
        names_of, how = stated.names, stated.file.name
    elif given is not None:
        names_of, how = names_by_value(given, ignore, "data.classes"), "data.classes"
    else:
        masks = [mask for match in matches.values() for _, mask in match.pairs]
        names_of, how = number_classes(masks, ignore)
    classes = class_values(names_of, {ignore})
    builder = DatasetBuilder(root, "folders", _NAME)
    builder.notes.append(f"{len(classes.classes)} classes by {how}")
    for split, match in matches.items():
        for path, why in match.unmatched:
            builder.add_issue(path, why, category=UNMATCHED_FILES, split=split or None)
    return pair_files(
        builder,
        {split: match.pairs for split, match in matches.items()},
        classes,
        ignore=ignore,
        colours=None if stated is None else stated.colours,
        classes_from_options=stated is None and given is not None,
        origins={split: f"{pair.images} and {pair.masks}" for split, pair in folders.items()},
    )


def pair_files(
    builder: DatasetBuilder,
    pairs: Mapping[str, Sequence[tuple[Path, Path]]],
    classes: ClassValues,
    *,
    origins: Mapping[str, str],
    ignore: int = IGNORE,
    colours: Colours | None = None,
    classes_from_options: bool = False,
) -> ParsedDataset:
    """Build a data set of images and mask files; missing files become issues.

    Args:
        pairs: split -> (image, mask).
        origins: split -> where it was found.
        ignore: the stored value without a class.
        colours: what the colours of RGB masks stand for.
    """
    masks: list[Path] = []
    for split, both in pairs.items():
        missing = []
        for image, mask in both:
            if not image.is_file():
                missing.append((image, "no such file, but it is listed"))
            elif not mask.is_file():
                missing.append((image, f"its mask {mask} is missing"))
            else:
                builder.add_image(image, split=split if split != EVERYTHING else None)
                masks.append(mask)
        if len(missing) == len(both):
            message = f"none of its {len(both)} images exists with its mask"
            where = origins[split]
            builder.add_issue(where, message, split=split or None, skippable=False)
            builder.splits.setdefault(split, [])
        else:
            for path, why in missing:
                builder.add_issue(path, why, category=UNMATCHED_FILES, split=split or None)
    return builder.build(
        classes.classes,
        masks=MaskFiles(
            values=classes.values,
            ignore=ignore,
            files=Paths(masks, root=builder.root),
            colours=colours,
        ),
        classes_from_options=classes_from_options,
        origins=origins,
    )


def match_pair(pair: FolderPair) -> Matches:
    """Match images and masks by their paths in the folders, apart from extensions and suffixes."""
    images: dict[str, list[Path]] = {}
    for path in list_images(pair.images):
        key = _key(path, pair.images)
        suffix = next((end for end in _IMAGE_SUFFIXES if key.endswith(end)), "")
        images.setdefault(key.removesuffix(suffix), []).append(path)
    partners: dict[str, list[Path]] = {key: [] for key in images}
    unmatched: list[tuple[Path, str]] = []
    masks = list_images(pair.masks)
    for path in masks:
        key = _key(path, pair.masks)
        keys = (key, *(key.removesuffix(end) for end in _MASK_SUFFIXES if key.endswith(end)))
        match = next((key for key in keys if key in images), None)
        if match is None:
            unmatched.append((path, f"no image in {pair.images} has its name"))
        else:
            partners[match].append(path)
    matched = []
    for key, paths in images.items():
        if len(paths) == len(partners[key]) == 1:
            matched.append((paths[0], partners[key][0]))
        elif not partners[key]:
            unmatched += [(path, f"no mask in {pair.masks} has its name") for path in paths]
        else:
            several = paths if len(paths) > 1 else partners[key]
            names = ", ".join(path.name for path in several)
            unmatched.append((several[0], f"several files have its name: {names}"))
    if not matched:
        raise DataError(
            f"{pair.images}: none of its {sum(map(len, images.values()))} images has a mask among "
            f"the {len(masks)} of {pair.masks}; a mask is named like its image, such as 1.jpg and "
            "1.png"
        )
    return Matches(matched, unmatched)


def number_classes(masks: Sequence[Path], ignore: int) -> tuple[dict[int, str], str]:
    """Classes named by value, up to the largest in some masks, and a note on how that was done."""
    chosen = [masks[int(i)] for i in np.linspace(0, len(masks) - 1, min(MAX_LOOKS, len(masks)))]
    found: set[int] = set()
    errors = []
    with ThreadPoolExecutor(available_cores()) as executor:
        for values in executor.map(_values_of, chosen):
            if isinstance(values, ImageError):
                errors.append(values)
            else:
                found.update(values)
    if len(errors) == len(chosen):
        raise DataError(f"none of {len(chosen)} masks can be read: {errors[0]}")
    if found - {ignore} <= {0}:
        raise DataError(
            f"{masks[0].parent}: its masks have no value but {', '.join(map(str, sorted(found)))}, "
            f"and {ignore} is ignored. If it is a class, state it in classes.json, such as "
            f'{{"background": 0, "object": {ignore}}}, and set data.ignore to another value'
        )
    largest = max(found - {ignore})
    if largest >= MAX_NUMBERED:
        raise DataError(
            f"{masks[0].parent}: its masks have values up to {largest}, too many to be numbered "
            'as classes; state the values of classes in classes.json, {"name": value, ...}'
        )
    how = (
        f"number, as there is no {' or '.join(CLASS_FILES[:2])}: {largest} is the largest value "
        f"in {len(chosen)} of {len(masks)} masks"
    )
    return {value: str(value) for value in range(largest + 1)}, how


def _values_of(mask: Path) -> list[int] | ImageError:
    try:
        return np.flatnonzero(np.bincount(read_mask(mask).ravel())).tolist()
    except ImageError as error:
        return error


def _find_pair(folder: Path) -> FolderPair | None:
    """The folders of images and of masks in a folder, if it has both."""
    inside = list_folders(folder)
    images = [inside[name] for name in IMAGE_FOLDERS if name in inside]
    masks = [inside[name] for name in MASK_FOLDERS if name in inside and _has_masks(inside[name])]
    if not images or not masks:
        return None
    for content, found in (("images", images), ("masks", masks)):
        if len(found) > 1:
            names = join_names("folder", [path.name for path in found])
            raise DataError(
                f"{folder}: which of its {names} holds the {content}? Leave one of them"
            )
    return FolderPair(images[0], masks[0])


def _has_masks(folder: Path) -> bool:
    # Images next to a JSON, as in COCO's `annotations`, are not masks.
    has_json = any(entry.name.lower().endswith(".json") for entry in visible_entries(folder))
    return not has_json and bool(list_images(folder))


def _key(path: Path, folder: Path) -> str:
    """What an image and its mask share: the path in the folder, without extension."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _first(pairs: Iterable[FolderPair | None]) -> FolderPair | None:
    return next((pair for pair in pairs if pair is not None), None)


def _matches(tree: FileTree, content: Content) -> bool:
    return tree.root.is_dir() and bool(find_folders(tree.root))


def _read(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    return [read_masks(tree.root, options)] if _matches(tree, "masks") else []


_NAME = "folders of images and masks"
FORMAT = Format(
    name="folders",
    display_name=_NAME,
    contents=frozenset(["masks"]),
    looks_for=f"a folder of images ({', '.join(IMAGE_FOLDERS)}) and one of masks "
    f"({', '.join(MASK_FOLDERS)}), with train and val above or below or neither",
    matches=_matches,
    read=_read,
    states_ignored=False,
)
