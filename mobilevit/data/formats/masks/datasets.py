"""Masks of ADE20K, Cityscapes and Pascal VOC, whose layouts and classes are known."""

from collections.abc import Iterator
from pathlib import Path

from mobilevit.data.class_names import ADE20K_CLASSES, VOC_CLASSES
from mobilevit.data.formats.base import IGNORE, Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import FileTree, Paths
from mobilevit.data.formats.masks.folders import (
    UNMATCHED_FILES,
    build_masks,
    find_images_and_masks,
    match_masks,
)
from mobilevit.data.formats.masks.values import (
    MaskFiles,
    class_values,
    read_class_file,
    voc_palette,
)
from mobilevit.data.formats.text import read_lines

_ADE20K_FOLDER = "ADEChallengeData2016"
_VOC_LISTS = {"train": ("train_aug", "trainaug", "train"), "val": ("val",)}


def read_ade20k(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read 150 classes, stored as 1 to 150; 0 is ignored."""
    matches = match_masks(tree.root, *find_images_and_masks(tree))
    classes = class_values(dict(enumerate(ADE20K_CLASSES, start=1)), {0})
    builder = DatasetBuilder(tree.root, ADE20K)
    return [build_masks(builder, matches, classes, ignore=0)]


def read_cityscapes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read the 19 classes of the benchmark; other fine labels are ignored."""
    from torchvision.datasets import Cityscapes

    images, masks = find_images_and_masks(tree)
    images = [path for path in images if "train_extra" not in Path(path).parts]  # without masks
    masks = [path for path in masks if path.endswith("_labelIds.png")]
    names = {c.id: c.name for c in Cityscapes.classes if not c.ignore_in_eval}
    ignored = {c.id for c in Cityscapes.classes if c.ignore_in_eval and c.id >= 0} | {IGNORE}
    builder = DatasetBuilder(tree.root, CITYSCAPES)
    matches = match_masks(tree.root, images, masks)
    return [build_masks(builder, matches, class_values(names, ignored))]


def find_voc(root: Path) -> Path | None:
    """The folder, `root` or one in it, with VOC's layout and a list of validation images."""
    for base in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (base / "JPEGImages").is_dir() and _list_file(base, "val"):
            return base
    return None


def read_voc(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read palette PNGs, listed in ImageSets/Segmentation or `list`; 255 is ignored.

    Training images are listed in `train_aug.txt` or `trainaug.txt` (VOC and SBD), else in
    `train.txt`. Lines may hold two paths: image and mask. Masks are in SegmentationClass or else in
    SegmentationClassAug; RGB masks are read by VOC's colours. Classes are VOC's unless a class file
    in the folder names others.
    """
    base = find_voc(tree.root) or tree.root
    builder = DatasetBuilder(base, VOC)
    masks: list[Path] = []
    for split in _VOC_LISTS:
        if (file := _list_file(base, split)) is None:
            continue
        builder.splits[split], builder.origins[split] = [], str(file)
        missing = []
        for image, mask in _listed_pairs(base, file):
            if image.is_file() and mask.is_file():
                builder.add_image(image, split=split)
                masks.append(mask)
            else:
                lacks = f"its mask {mask} is missing" if image.is_file() else "no such file"
                missing.append((image, f"is listed in {file.name}, but {lacks}"))
        if missing and not builder.splits[split]:
            message = f"none of its {len(missing)} images exists with its mask"
            builder.add_issue(file, message, split=split, skippable=False)
            continue
        for image, why in missing:
            builder.add_issue(image, why, category=UNMATCHED_FILES, split=split)
    stated = read_class_file(base, IGNORE)
    classes = class_values(dict(enumerate(VOC_CLASSES)) if stated is None else stated.names)
    palette = {colour: value for value, colour in enumerate(voc_palette())}
    colours = palette if stated is None or stated.colours is None else stated.colours
    source = MaskFiles(
        values=classes.values,
        ignore=IGNORE,
        files=Paths(masks),
        colours=colours,
    )
    return [builder.build(classes.classes, masks=source)]


def _listed_pairs(base: Path, file: Path) -> Iterator[tuple[Path, Path]]:
    for _, line in read_lines(file):
        if "/" in line and len(both := line.split()) == 2:
            image, mask = both
            yield base / image.lstrip("/"), base / mask.lstrip("/")
        else:
            images = [base / "JPEGImages" / f"{line}{end}" for end in (".jpg", ".jpeg", ".png")]
            folders = ("SegmentationClass", "SegmentationClassAug")
            masks = [base / folder / f"{line}.png" for folder in folders]
            yield _first_file(images), _first_file(masks)


def _list_file(base: Path, split: str) -> Path | None:
    for name in _VOC_LISTS[split]:
        for folder in (base / "ImageSets" / "Segmentation", base / "list"):
            if (file := folder / f"{name}.txt").is_file():
                return file
    return None


def _first_file(paths: list[Path]) -> Path:
    """The first path that is a file, or the first one."""
    return next((path for path in paths if path.is_file()), paths[0])


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
VOC = Format(
    name="voc",
    display_name="Pascal VOC",
    contents=frozenset(["masks"]),
    looks_for="Pascal VOC (JPEGImages and ImageSets/Segmentation/val.txt)",
    matches=lambda tree, content: find_voc(tree.root) is not None,
    read=read_voc,
)
