"""Data sets with masks whose form and classes are known: Pascal VOC, COCO, ADE20K, Cityscapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mobilevit.data.class_names import ADE20K_CLASSES, VOC_CLASSES
from mobilevit.data.formats.folders import DataError
from mobilevit.data.formats.mask_folders import Pair, match_pair
from mobilevit.data.mask_classes import IGNORE, Numbering, numbered, stated_classes
from mobilevit.tasks.segmentation.dataset import MaskFiles, voc_palette

Part: TypeAlias = Literal["train", "val"]

_VOC_LISTS = {"train": ("train_aug", "trainaug", "train"), "val": ("val",)}
_ADE20K_FOLDERS = {"train": "training", "val": "validation"}


def find_voc(root: Path) -> Path | None:
    """The folder in or at `root` that has the form of Pascal VOC, with a list to evaluate by."""
    for base in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (base / "JPEGImages").is_dir() and _voc_list(base, "val"):
            return base
    return None


def open_voc(base: Path, part: Part) -> MaskFiles:
    """Pascal VOC: palette PNGs, listed in ImageSets/Segmentation; 255 is ignored.

    What to train on is in `train_aug.txt` or `trainaug.txt` (VOC and SBD), or else in `train.txt`.
    Lists may also be in `list`, and have two paths a line: image and mask. A mask that is not in
    SegmentationClass is looked for in SegmentationClassAug. RGB masks are read by VOC's colours.
    Classes are VOC's own unless a file in the folder names others, as for folders.

    Raises:
        DataError: there is no such list, or none of the images in it.
    """
    file = _voc_list(base, part)
    if file is None:
        names = " or ".join(f"{name}.txt" for name in _VOC_LISTS[part])
        raise DataError(f"{base}: has no {names} in ImageSets/Segmentation or list")
    pairs = []
    for line in filter(None, map(str.strip, file.read_text("utf-8").splitlines())):
        if "/" in line and len(both := line.split()) == 2:
            image, mask = both
            pairs.append((base / image.lstrip("/"), base / mask.lstrip("/")))
        else:
            images = (base / "JPEGImages" / f"{line}{end}" for end in (".jpg", ".jpeg", ".png"))
            folders = ("SegmentationClass", "SegmentationClassAug")
            masks = (base / folder / f"{line}.png" for folder in folders)
            pairs.append((_first(images), _first(masks)))
    stated = stated_classes(base, IGNORE)
    palette = {colour: value for value, colour in enumerate(voc_palette())}
    numbering = numbered(dict(enumerate(VOC_CLASSES)) if stated is None else stated.names)
    colours = palette if stated is None or stated.colours is None else stated.colours
    return _files(base, "voc", str(file), pairs, numbering, colours=colours)


def _voc_list(base: Path, part: Part) -> Path | None:
    for name in _VOC_LISTS[part]:
        for folder in (base / "ImageSets" / "Segmentation", base / "list"):
            if (file := folder / f"{name}.txt").is_file():
                return file
    return None


def _first(paths: Iterable[Path]) -> Path:
    """The first path that is a file, or the first one."""
    candidates = list(paths)
    return next((path for path in candidates if path.is_file()), candidates[0])


def find_ade20k(root: Path) -> Path | None:
    """The folder in or at `root` that has the form of the ADE20K challenge of 2016."""
    for base in (root, root / "ADEChallengeData2016"):
        folders = [base / kind / _ADE20K_FOLDERS["val"] for kind in ("images", "annotations")]
        if all(folder.is_dir() for folder in folders):
            return base
    return None


def surely_ade20k(root: Path) -> Path | None:
    """As `find_ade20k`, but only where something else than the form says so too."""
    base = find_ade20k(root)
    if base is None or base.name == "ADEChallengeData2016":
        return base
    return base if (base / "objectInfo150.txt").is_file() else None


def open_ade20k(base: Path, part: Part) -> MaskFiles:
    """ADE20K's 150 classes: stored values are 1 to 150, and 0, which is ignored.

    Raises:
        DataError: there are no images with masks.
    """
    pair = Pair(*(base / kind / _ADE20K_FOLDERS[part] for kind in ("images", "annotations")))
    images, masks, unmatched = match_pair(pair)
    numbering = numbered(dict(enumerate(ADE20K_CLASSES, start=1)), 0)
    samples = _files(
        base, "ade20k", str(pair.images), tuple(zip(images, masks, strict=True)), numbering
    )
    return replace(samples, unmatched=samples.unmatched + unmatched)


def find_cityscapes(root: Path) -> Path | None:
    """`root`, if it has the folders of Cityscapes."""
    return root if all((root / name).is_dir() for name in ("leftImg8bit", "gtFine")) else None


def open_cityscapes(base: Path, part: Part) -> MaskFiles:
    """Cityscapes' 19 classes of its benchmark; what else its fine labels hold is ignored.

    Raises:
        DataError: there are no images with masks.
    """
    from torchvision.datasets import Cityscapes

    try:
        listed = Cityscapes(base, split=part, target_type="semantic")
    except (RuntimeError, OSError) as error:
        raise DataError(f"{base}: {part} of Cityscapes cannot be listed: {error}") from error
    names = {c.id: c.name for c in Cityscapes.classes if not c.ignore_in_eval}
    others = [c.id for c in Cityscapes.classes if c.ignore_in_eval and c.id >= 0]
    pairs = sorted(
        (Path(image), Path(masks[0]))
        for image, masks in zip(listed.images, listed.targets, strict=True)
        if image.endswith(".png")
    )
    numbering = numbered(names, more_ignored=others)
    return _files(base, "cityscapes", str(base / "leftImg8bit" / part), pairs, numbering)


def _files(
    base: Path, name: str, origin: str, pairs: Sequence[tuple[Path, Path]], numbering: Numbering,
    **more: Any,
) -> MaskFiles:  # fmt: skip
    """Samples of those pairs of which both files are there."""
    unmatched = []
    found = []
    for image, mask in pairs:
        if not image.is_file():
            unmatched.append((image, "no such file, but it is listed"))
        elif not mask.is_file():
            unmatched.append((image, f"its mask {mask} is missing"))
        else:
            found.append((image, mask))
    if not found:
        raise DataError(f"{origin}: not one of {len(pairs)} images is there with its mask")
    images, masks = zip(*found, strict=True)
    return MaskFiles(
        root=base, format=name, origin=origin, **numbering._asdict(), unmatched=tuple(unmatched),
        images=images, masks=masks, **more,
    )  # fmt: skip
