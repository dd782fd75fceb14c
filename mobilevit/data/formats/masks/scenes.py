"""Masks of ADE20K and Cityscapes: folders of images and masks whose classes are known."""

from __future__ import annotations

from pathlib import Path

from mobilevit.data.class_names import ADE20K_CLASSES
from mobilevit.data.formats.base import IGNORE, Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.masks.folders import build_masks, find_images_and_masks, match_masks
from mobilevit.data.formats.masks.values import class_values

_ADE20K_FOLDER = "ADEChallengeData2016"


def read_ade20k(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read 150 classes, stored as 1 to 150; 0 is ignored."""
    matches = match_masks(tree.root, *find_images_and_masks(tree))
    classes = class_values(dict(enumerate(ADE20K_CLASSES, start=1)), {0})
    builder = DatasetBuilder(tree.root, "ade20k", "ADE20K", content="masks")
    return [build_masks(builder, matches, classes, ignore=0)]


def read_cityscapes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read the 19 classes of the benchmark; other fine labels are ignored."""
    from torchvision.datasets import Cityscapes

    images, masks = find_images_and_masks(tree)
    images = [path for path in images if "train_extra" not in Path(path).parts]  # without masks
    masks = [path for path in masks if path.endswith("_labelIds.png")]
    names = {c.id: c.name for c in Cityscapes.classes if not c.ignore_in_eval}
    ignored = {c.id for c in Cityscapes.classes if c.ignore_in_eval and c.id >= 0} | {IGNORE}
    builder = DatasetBuilder(tree.root, "cityscapes", "Cityscapes", content="masks")
    matches = match_masks(tree.root, images, masks)
    return [build_masks(builder, matches, class_values(names, ignored))]


def _is_ade20k(tree: FileTree, content: Content) -> bool:
    # Any folders of images and masks may look the same; the name or a file of the set decides.
    named = tree.root.name == _ADE20K_FOLDER or (tree.root / _ADE20K_FOLDER).is_dir()
    listed = (path.name == "objectInfo150.txt" for path in tree.with_extension(".txt"))
    return (named or any(listed)) and bool(find_images_and_masks(tree)[0])


def _is_cityscapes(tree: FileTree, content: Content) -> bool:
    return all((tree.root / name).is_dir() for name in ("leftImg8bit", "gtFine"))


ADE20K = Format(
    name="ade20k",
    display_name="ADE20K",
    contents=frozenset(["masks"]),
    looks_for="ADE20K (images/validation, annotations/validation)",
    matches=_is_ade20k,
    read=read_ade20k,
)
CITYSCAPES = Format(
    name="cityscapes",
    display_name="Cityscapes",
    contents=frozenset(["masks"]),
    looks_for="Cityscapes (leftImg8bit, gtFine)",
    matches=_is_cityscapes,
    read=read_cityscapes,
)
