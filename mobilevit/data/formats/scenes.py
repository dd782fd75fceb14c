"""Masks of ADE20K and Cityscapes, whose layouts and classes are known."""

from __future__ import annotations

from pathlib import Path

from mobilevit.data.class_names import ADE20K_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import (
    IGNORE,
    Content,
    DatasetBuilder,
    Format,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.mask_folders import UNMATCHED_FILES, FolderPair, match_pair, pair_files
from mobilevit.data.formats.masks import class_values

_ADE20K_FOLDERS = {"train": "training", "val": "validation"}


def find_ade20k(root: Path) -> Path | None:
    """The folder, `root` or one in it, with the layout of the ADE20K challenge of 2016."""
    for base in (root, root / "ADEChallengeData2016"):
        folders = [base / name / _ADE20K_FOLDERS["val"] for name in ("images", "annotations")]
        if all(folder.is_dir() for folder in folders):
            return base
    return None


def read_ade20k(base: Path) -> ParsedDataset:
    """Read 150 classes, stored as 1 to 150; 0 is ignored."""
    builder = DatasetBuilder(base, "ade20k", "ADE20K")
    pairs, origins = {}, {}
    for split, name in _ADE20K_FOLDERS.items():
        folders = FolderPair(base / "images" / name, base / "annotations" / name)
        if all(folder.is_dir() for folder in folders):
            matches = match_pair(folders)
            pairs[split], origins[split] = matches.pairs, str(folders.images)
            for path, why in matches.unmatched:
                builder.add_issue(path, why, category=UNMATCHED_FILES, split=split)
    classes = class_values(dict(enumerate(ADE20K_CLASSES, start=1)), {0})
    return pair_files(builder, pairs, classes, ignore=0, origins=origins)


def _matches_ade20k(tree: FileTree, content: Content) -> bool:
    # Any folders of images and masks may look the same; the name or a file of the set decides.
    base = find_ade20k(tree.root)
    return base is not None and (
        base.name == "ADEChallengeData2016" or (base / "objectInfo150.txt").is_file()
    )


def _read_ade20k(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    base = find_ade20k(tree.root)
    return [] if base is None else [read_ade20k(base)]


def read_cityscapes(base: Path) -> ParsedDataset:
    """Read the 19 classes of the benchmark; other fine labels are ignored."""
    from torchvision.datasets import Cityscapes

    pairs, origins = {}, {}
    for split in ("train", "val"):
        if not (base / "leftImg8bit" / split).is_dir():
            continue
        try:
            listed = Cityscapes(base, split=split, target_type="semantic")
        except (RuntimeError, OSError) as error:
            raise DataError(f"{base}: {split} of Cityscapes cannot be listed: {error}") from error
        origins[split] = str(base / "leftImg8bit" / split)
        pairs[split] = sorted(
            (Path(image), Path(masks[0]))
            for image, masks in zip(listed.images, listed.targets, strict=True)
            if image.endswith(".png")
        )
    names = {c.id: c.name for c in Cityscapes.classes if not c.ignore_in_eval}
    ignored = {c.id for c in Cityscapes.classes if c.ignore_in_eval and c.id >= 0} | {IGNORE}
    builder = DatasetBuilder(base, "cityscapes", "Cityscapes")
    return pair_files(builder, pairs, class_values(names, ignored), origins=origins)


def _matches_cityscapes(tree: FileTree, content: Content) -> bool:
    return all((tree.root / name).is_dir() for name in ("leftImg8bit", "gtFine"))


def _read_cityscapes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    return [read_cityscapes(tree.root)] if _matches_cityscapes(tree, "masks") else []


ADE20K = Format(
    name="ade20k",
    display_name="ADE20K",
    contents=frozenset(["masks"]),
    looks_for="ADE20K (images/validation, annotations/validation)",
    matches=_matches_ade20k,
    read=_read_ade20k,
)
CITYSCAPES = Format(
    name="cityscapes",
    display_name="Cityscapes",
    contents=frozenset(["masks"]),
    looks_for="Cityscapes (leftImg8bit, gtFine)",
    matches=_matches_cityscapes,
    read=_read_cityscapes,
)
