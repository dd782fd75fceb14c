"""COCO's panoptic PNGs, and the classes of Pascal VOC on COCO's masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.formats.base import IGNORE, Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.masks.values import MAX_VALUE, MaskSource, class_values
from mobilevit.data.formats.objects.coco import (
    VOC_PLACES,
    CocoFile,
    find_jsons,
    read_objects,
)
from mobilevit.data.images import ImageError, pillow


@dataclass(frozen=True, eq=False, kw_only=True)
class PanopticMasks(MaskSource):
    """Panoptic PNGs, whose pixels are ids of segments; unlabelled pixels and crowds are ignored."""

    json: Path
    files: Sequence[Path]
    segments: Sequence[Mapping[int | None, int]]
    """For each image: id of a segment -> stored value."""

    def file(self, index: int) -> Path:
        return self.files[index]

    def digest(self, index: int, annotation: object = None) -> str:
        return super().digest(index, self.segments[index])

    def read(self, index: int) -> np.ndarray:
        file, segments = self.files[index], self.segments[index]
        with pillow(str(file)), Image.open(file, formats=("PNG",)) as image:
            if image.mode != "RGB":
                raise ImageError(str(file), f"a panoptic PNG is RGB, but this is {image.mode}")
            rgb = np.array(image, np.uint32)
        ids = rgb @ np.array([1, 1 << 8, 1 << 16], np.uint32)  # red is the lowest byte
        known, places = np.unique(ids, return_inverse=True)
        if unknown := [number for number in known.tolist() if number not in segments]:
            raise ImageError(str(file), f"{self.json} does not list its segments {unknown[:3]}")
        return np.array([segments[i] for i in known.tolist()], np.uint16)[places].reshape(ids.shape)


def read_panoptic(
    file: Path, root: Path, *, split: str | None, voc_classes: bool = False
) -> ParsedDataset:
    """Read a panoptic JSON; the PNGs are in a folder of the same name.

    With `voc_classes`, categories are mapped to the classes of Pascal VOC; others are background.
    """
    format = WITH_VOC_CLASSES if voc_classes else FORMAT
    source = CocoFile(file, root, split, format, "masks")
    builder = source.builder
    if not source.categories:  # the file is damaged
        return builder.build(())
    labels = {number: label for label, number in enumerate(source.categories)}
    names = tuple(source.categories.values())
    if voc_classes:
        labels, names = {number: VOC_PLACES.get(number, 0) for number in labels}, VOC_CLASSES
    ignore = IGNORE if len(names) <= IGNORE else MAX_VALUE
    classes = class_values(dict(enumerate(names)), {ignore, MAX_VALUE})
    files = [file.with_suffix("") / f"{Path(image).stem}.png" for image in builder.files]
    segments: list[dict[int | None, int]] = [{0: MAX_VALUE} for _ in files]
    for _, image, where, entry in source.annotations():
        files[image] = file.with_suffix("") / str(entry.get("file_name", files[image].name))
        for segment in entry.get("segments_info", ()):
            if (category := source.category_of(segment, where, image)) is not None:
                crowd = segment.get("iscrowd") and (not voc_classes or category in VOC_PLACES)
                segments[image][segment.get("id")] = MAX_VALUE if crowd else labels[category]
    for image, (name, mask) in enumerate(zip(builder.files, files, strict=True)):
        if not mask.is_file():
            builder.add_issue(name, f"its mask {mask} is missing", image=image)
    if split is not None:
        builder.splits[split] = list(range(len(files)))
    return builder.build(
        classes.classes,
        masks=PanopticMasks(
            values=classes.values, ignore=ignore, json=file, files=files, segments=segments
        ),
    )


def _read(
    tree: FileTree, options: ReadOptions, *, voc_classes: bool = False
) -> list[ParsedDataset]:
    return [
        read_panoptic(file, tree.root, split=split or None, voc_classes=voc_classes)
        for split, file in find_jsons(tree, panoptic=True).items()
    ]


def _read_with_voc_classes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    read = partial(read_objects, content="masks", format=WITH_VOC_CLASSES, voc_classes=True)
    return [
        read(file, tree.root, split=split or None) for split, file in find_jsons(tree).items()
    ] or _read(tree, options, voc_classes=True)


def _matches(tree: FileTree, content: Content) -> bool:
    return tree.root.is_dir() and bool(find_jsons(tree, panoptic=True))


FORMAT = Format(
    name="coco_panoptic",
    display_name="COCO panoptic",
    contents=frozenset(["masks"]),
    looks_for="COCO panoptic (a .json with segments_info, and PNGs in a folder of its name)",
    matches=_matches,
    read=_read,
)
WITH_VOC_CLASSES = Format(
    name="coco_voc",
    display_name="COCO with the classes of Pascal VOC",
    contents=frozenset(["masks"]),
    looks_for="COCO (a .json of instances or of panoptic segments)",
    matches=lambda tree, content: bool(find_jsons(tree)) or _matches(tree, content),
    read=_read_with_voc_classes,
    automatic=False,
)
