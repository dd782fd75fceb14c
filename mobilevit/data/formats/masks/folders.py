"""Folders of images and of their masks, matched by file name."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import IGNORE, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    FileTree,
    Paths,
    find_splits,
    join_names,
    match_files,
    normalize_name,
)
from mobilevit.data.formats.masks.values import (
    CLASS_FILES,
    ClassValues,
    Colours,
    MaskFiles,
    class_values,
    format_ranges,
    names_by_value,
    read_class_file,
    read_mask,
)
from mobilevit.data.images import ImageError
from mobilevit.utils.devices import available_cores

MAX_LOOKS = 200
"""At most this many masks are read to number classes without names."""
MAX_NUMBERED = 1000
"""Values from this one on are too large to be numbered as classes."""
UNMATCHED_FILES = "images and masks that do not match"

# What tools append to the names of masks.
_MASK_SUFFIXES = (
    "_gtfine_labelids", "_labelids", "_mask", "-mask", "_masks", "_labels", "_label",
    "_segmentation", "_seg", "_gt", "_l",
)  # fmt: skip


class Matches(NamedTuple):
    """Images and their masks, in the same order."""

    images: list[str]
    masks: list[str]
    unmatched: list[tuple[str, str]]
    """Files without a partner, and why."""


def find_images_and_masks(tree: FileTree) -> tuple[list[str], list[str]]:
    """The files in folders such as `images`, and in those such as `masks` next to them.

    Splits may be above (train/images, train/masks) or below (images/train, masks/train). A folder
    of masks holds images and, directly, no JSON.
    """
    images, masks = _typed_folders(tree, IMAGE_FOLDERS), _typed_folders(tree, MASK_FOLDERS)
    for path in tree.with_extension(".json"):
        masks.get(path.parent.parent, {}).pop(path.parent, None)
    both = [above for above in images if masks.get(above)]
    for content, found in (("images", images), ("masks", masks)):
        for above in both:
            if len(found[above]) > 1:
                names = join_names("folder", sorted(folder.name for folder in found[above]))
                raise DataError(
                    f"{above}: which of its {names} holds the {content}? Leave one of them"
                )
    return (
        [path for above in both for paths in images[above].values() for path in paths],
        [path for above in both for paths in masks[above].values() for path in paths],
    )


def _typed_folders(tree: FileTree, names: Collection[str]) -> dict[Path, dict[Path, list[str]]]:
    """Folder -> those of `names` in it -> their images at any depth."""
    found: dict[Path, dict[Path, list[str]]] = {}
    for path in tree.images if tree.root.is_dir() else ():
        for folder in Path(path).parents:
            if folder == tree.root:
                break
            if normalize_name(folder.name) in names:
                found.setdefault(folder.parent, {}).setdefault(folder, []).append(path)
                break
    return found


def match_masks(root: Path, images: Sequence[str], masks: Sequence[str]) -> Matches:
    """Match images and masks by their paths, apart from extensions and what tools append."""
    matches = Matches([], [], [])
    partners = match_files(images, masks, _MASK_SUFFIXES)
    uses = Counter(mask for found in partners for mask in found)
    for image, found in zip(images, partners, strict=True):
        if not found:
            matches.unmatched.append((image, "no mask has its name"))
        elif len(found) > 1 or uses[found[0]] > 1:
            what = "mask" if len(found) > 1 else "image"
            matches.unmatched.append((image, f"more than one {what} has its name"))
        else:
            matches.images.append(image)
            matches.masks.append(found[0])
    unused = (mask for mask in masks if mask not in uses)
    matches.unmatched.extend((mask, "no image has its name") for mask in unused)
    if not matches.images:
        raise DataError(
            f"{root}: none of its {len(images)} images has one of its {len(masks)} masks; a mask "
            "is named like its image, such as 1.jpg and 1.png"
        )
    return matches


def build_masks(
    builder: DatasetBuilder,
    matches: Matches,
    classes: ClassValues,
    *,
    ignore: int = IGNORE,
    colours: Colours | None = None,
    classes_from_options: bool = False,
) -> ParsedDataset:
    """Build a data set of images and mask files, with the splits that folders are named after.

    Args:
        ignore: the stored value without a class.
        colours: what the colours of RGB masks stand for.
    """
    paths = [*matches.images, *(path for path, _ in matches.unmatched)]
    splits = dict(zip(paths, find_splits(paths, builder.root), strict=True))
    for image in matches.images:
        builder.add_image(image, split=splits[image])
    for path, why in matches.unmatched:
        split = splits[path]
        if split is None and builder.splits:
            builder.add_unused(path, "in no split")
            continue
        builder.add_issue(path, why, category=UNMATCHED_FILES, split=split)
        if split is not None:
            builder.splits.setdefault(split, [])
    builder.split_by_folders()
    return builder.build(
        classes.classes,
        masks=MaskFiles(
            values=classes.values,
            ignore=ignore,
            files=Paths(matches.masks),
            colours=colours,
        ),
        classes_from_options=classes_from_options,
    )


def read_masks(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read the classes, and match images and masks.

    Classes are those of the first of `CLASS_FILES` in the root; else `options.classes` name the
    values 0, 1, ...; else they are numbered up to the largest value in some masks.
    """
    matches = match_masks(tree.root, *find_images_and_masks(tree))
    ignore, given = options.ignore, options.classes
    stated = read_class_file(tree.root, ignore)
    if stated is not None:
        names, how = stated.names, stated.file.name
    elif given is not None:
        names, how = names_by_value(given, ignore, "data.classes"), "data.classes"
    else:
        names, how = number_classes(matches.masks, ignore)
    classes = class_values(names, {ignore})
    builder = DatasetBuilder(tree.root, FORMAT)
    builder.notes.append(f"{len(classes.classes)} classes by {how}")
    parsed = build_masks(
        builder,
        matches,
        classes,
        ignore=ignore,
        colours=None if stated is None else stated.colours,
        classes_from_options=stated is None and given is not None,
    )
    return [parsed]


def number_classes(masks: Sequence[str], ignore: int) -> tuple[dict[int, str], str]:
    """Classes named by value, up to the largest in some masks, and a note on how that was done."""
    looked_at = [masks[int(i)] for i in np.linspace(0, len(masks) - 1, min(MAX_LOOKS, len(masks)))]
    with ThreadPoolExecutor(available_cores()) as executor:
        results = list(executor.map(_values_of, looked_at))
    found = {value for values in results if isinstance(values, list) for value in values}
    errors = [error for error in results if isinstance(error, ImageError)]
    if len(errors) == len(looked_at):
        raise DataError(f"none of {len(looked_at)} masks can be read: {errors[0]}")
    folder = os.path.dirname(masks[0])
    if found - {ignore} <= {0}:
        raise DataError(
            f"{folder}: its masks have no value but {', '.join(map(str, sorted(found)))}, "
            f"and {ignore} is ignored. If it is a class, state it in classes.json, such as "
            f'{{"background": 0, "object": {ignore}}}, and set data.ignore to another value'
        )
    values = sorted(found - {ignore})
    largest = values[-1]
    if largest >= min(MAX_NUMBERED, 2 * len(values)):
        raise DataError(
            f"{folder}: its masks have the values {format_ranges(values)}, too many or too far "
            f"from 0 to {len(values) - 1} to be numbered as classes; state what they stand for in "
            'classes.json, {"name": value, ...}'
        )
    how = (
        f"number, as there is no {' or '.join(CLASS_FILES[:2])}: {largest} is the largest value "
        f"in {len(looked_at)} of {len(masks)} masks"
    )
    return {value: str(value) for value in range(largest + 1)}, how


def _values_of(mask: str) -> list[int] | ImageError:
    try:
        return np.flatnonzero(np.bincount(read_mask(mask).ravel())).tolist()
    except ImageError as error:
        return error


FORMAT = Format(
    name="folders",
    display_name="folders of images and masks",
    contents=frozenset(["masks"]),
    looks_for=f"a folder of images ({', '.join(sorted(IMAGE_FOLDERS))}) and one of masks "
    f"({', '.join(sorted(MASK_FOLDERS))}), with train and val above or below or neither",
    matches=lambda tree, content: bool(find_images_and_masks(tree)[0]),
    read=read_masks,
    states_ignored=False,
)
