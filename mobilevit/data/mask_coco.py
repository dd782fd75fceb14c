"""COCO's JSON of objects, or its panoptic PNGs -> masks of its own classes or of Pascal VOC's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.formats.folders import DataError
from mobilevit.data.images import ImageError, pillow
from mobilevit.data.mask_classes import HIGHEST, IGNORE, numbered
from mobilevit.data.mask_sets import Part
from mobilevit.tasks.segmentation.dataset import MaskSamples

CocoKind: TypeAlias = Literal["instances", "panoptic"]

COCO_IDS_OF_VOC = (
    0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72,
)  # fmt: skip
"""For each class of VOC the id of COCO's category; background has none."""


class _Object(NamedTuple):
    value: int
    """Stored value of its class, or `HIGHEST` where its pixels are ignored."""
    outline: Any
    """Polygons, each a float64 array of x, y, x, y, ...; or COCO's run-length encoding."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _CocoSamples(MaskSamples):
    """What both of COCO's forms share: a JSON, and what it says of each image."""

    file: Path
    contents: tuple[Any, ...]
    """For each image what its mask is made from."""
    PER_SAMPLE = ("images", "contents")


class InstanceMasks(_CocoSamples):
    """COCO's objects, drawn into one mask: smaller ones last, so that larger ones hide none.

    What no object covers is background. A crowd is ignored where no object lies on it. Contents
    are (height, width, objects).
    """

    def mask_file(self, index: int) -> None:
        """None: the mask is drawn."""

    def mask_name(self, index: int) -> str:
        """The JSON, and the image in it."""
        return f"{self.file}: {self.images[index].name}"

    def stored_size(self, index: int) -> tuple[int, int, bool]:
        """The size that the JSON states."""
        height, width, _ = self.contents[index]
        return height, width, False

    def read(self, index: int) -> np.ndarray:
        """Draw the objects: uint16 [H, W]."""
        height, width, objects = self.contents[index]
        shapes = []
        for value, outline in objects:
            try:
                runs = _runs(outline, height, width)
                fits = min(runs, default=0) >= 0 and sum(runs) == height * width
            except (TypeError, LookupError) as error:
                raise ImageError(self.mask_name(index), f"an object's mask: {error!r}") from error
            if not fits:
                raise ImageError(self.mask_name(index), "an object's mask is of another size")
            shapes.append((value, runs, sum(runs[1::2])))
        columns = np.zeros(height * width, np.uint16)  # one after another, as runs are
        # Crowds first, then by size: sorting is stable, so of equal ones the last is on top.
        for value, runs, _ in sorted(shapes, key=lambda shape: (shape[0] != HIGHEST, -shape[2])):
            columns[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = value
        return columns.reshape(width, height).T.copy()


class PanopticMasks(_CocoSamples):
    """COCO's panoptic PNGs; what is unlabelled, and crowds, are ignored.

    Contents are (PNG, {id of a segment: stored value}).
    """

    def mask_file(self, index: int) -> Path:
        """The PNG."""
        file: Path = self.contents[index][0]
        return file

    def read(self, index: int) -> np.ndarray:
        """The values of the PNG's segments: uint16 [H, W]."""
        file, segments = self.contents[index]
        with pillow(str(file)), Image.open(file, formats=("PNG",)) as image:
            if image.mode != "RGB":
                raise ImageError(str(file), f"a panoptic PNG is RGB, this is of mode {image.mode}")
            rgb = np.array(image, np.uint32)
        ids = rgb @ np.array([1, 1 << 8, 1 << 16], np.uint32)  # the least of its bytes is red
        known, places = np.unique(ids, return_inverse=True)
        if unknown := [number for number in known.tolist() if number not in segments]:
            raise ImageError(str(file), f"{self.file} says nothing of its segments {unknown[:3]}")
        return np.array([segments[i] for i in known.tolist()], np.uint16)[places].reshape(ids.shape)


def find_coco(root: Path, kind: CocoKind) -> Path | None:
    """`root`, if it or its `annotations` has a JSON of this kind."""
    parts: tuple[Part, ...] = ("train", "val")
    return root if any(_coco_file(root, part, kind) for part in parts) else None


def open_coco(root: Path, part: Part, *, kind: CocoKind, voc: bool = False) -> MaskSamples:
    """COCO with its own classes or with Pascal VOC's; see `InstanceMasks` and `PanopticMasks`.

    Its own classes are all categories in order of id, with `background` before them where masks
    are made of instances. In VOC's, all that VOC has no class for is background, crowds of it too,
    and hides nothing. Where masks are made of instances, images without any are not trained on.

    Raises:
        DataError: there is no such JSON; it is not COCO's; or none of its images is there.
    """
    file = _coco_file(root, part, kind)
    if file is None:
        raise DataError(f"{root}: has no {kind}_{part}*.json, in it or in annotations")
    try:
        content = json.loads(file.read_bytes())
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        about: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            about[annotation["image_id"]].append(annotation)
        classes, values = _coco_classes(names, kind=kind, voc=voc)
        make: Callable[..., Any] = _instances
        if kind == "panoptic":  # its PNGs are in a folder beside it that is called as it is
            make = partial(_panoptic, file.with_suffix(""))
        made = [(i["file_name"], make(i, about[i["id"]], values)) for i in content["images"]]
        outlined = any("segmentation" in one for one in content["annotations"])
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: is not as COCO has it: {type(error).__name__} {error}") from error
    if kind == "instances" and not outlined:
        raise DataError(f"{file}: its objects have boxes only, no outlines to make masks of")
    folder = _images_of(file, root, part, made[0][0] if made else "")
    kept, unmatched, empty = [], [], 0
    for name, what in made:
        if not (folder / name).is_file():
            unmatched.append((folder / name, f"no such file, but {file.name} lists it"))
        elif kind == "panoptic" and not what[0].is_file():
            unmatched.append((folder / name, f"its mask {what[0]} is missing"))
        elif kind == "instances" and part == "train" and not what[2]:
            empty += 1
        else:
            kept.append((folder / name, what))
    if not kept:
        raise DataError(f"{file}: not one of its {len(made)} images is in {folder} with a mask")
    images, contents = zip(*kept, strict=True)
    numbering = numbered(
        classes, IGNORE if len(classes) <= IGNORE else HIGHEST, more_ignored=(HIGHEST,)
    )
    return (InstanceMasks if kind == "instances" else PanopticMasks)(
        root=root,
        format="coco_voc" if voc else "coco" if kind == "instances" else "coco_panoptic",
        origin=str(file) + (f" without {empty} images that have no object" if empty else ""),
        **numbering._asdict(),
        unmatched=tuple(unmatched),
        file=file,
        images=images,
        contents=contents,
    )


def _runs(outline: Any, height: int, width: int) -> list[int]:
    """Lengths of runs outside and within an object, by turns, down one column after another."""
    if isinstance(outline, list):
        from pycocotools import mask as coco

        outline = coco.merge(coco.frPyObjects(outline, height, width))
    packed = outline["counts"]
    if isinstance(packed, list):
        return packed
    # Unpacked here: pycocotools' own reader does not check sizes, nor agree with NumPy 2.
    runs: list[int] = []
    run = shift = 0
    for byte in packed.encode() if isinstance(packed, str) else packed:
        bits = byte - 48  # five of the number, the lowest first, and one that says: more follow
        run |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            run -= (bits & 16) << shift - 4  # the sign
            runs.append(run + runs[-2] if len(runs) > 2 else run)
            run = shift = 0
    return runs


def _coco_file(root: Path, part: Part, kind: CocoKind) -> Path | None:
    """The JSON of a part; where there are several years, that of the last."""
    for folder in (root / "annotations", root):
        if files := sorted(folder.glob(f"{kind}_{part}*.json")):
            return files[-1]
    return None


def _images_of(file: Path, root: Path, part: Part, first: str) -> Path:
    """The folder in which a JSON's images are, evaluated by the first of them."""
    name = file.stem.split("_", 1)[1]
    folders = [base / sub for sub in (name, part) for base in (root, root / "images")]
    folders += [root / "images", root]
    return next((folder for folder in folders if (folder / first).is_file()), folders[0])


def _coco_classes(
    names: Mapping[int, str], *, kind: CocoKind, voc: bool
) -> tuple[dict[int, str], dict[int, int | None]]:
    """Stored value -> class name; and category -> stored value, None where it is no class."""
    if voc:
        places = {number: place for place, number in enumerate(COCO_IDS_OF_VOC) if place}
        return dict(enumerate(VOC_CLASSES)), {number: places.get(number) for number in names}
    first = 1 if kind == "instances" else 0  # 0 is what no object covers
    values: dict[int, int | None] = {n: value for value, n in enumerate(sorted(names), first)}
    classes = {value: names[n] for value, n in enumerate(sorted(names), first)}
    return classes | ({0: VOC_CLASSES[0]} if first else {}), values


def _instances(
    image: Mapping[str, Any], about: Sequence[Any], values: Mapping[int, int | None]
) -> tuple[int, int, tuple[_Object, ...]]:
    """What `InstanceMasks` makes an image's mask from."""
    objects = []
    for annotation in about:
        value = values[annotation["category_id"]]
        if value is None:
            continue
        outline = annotation.get("segmentation")
        if isinstance(outline, list):
            outline = [np.array(xy, np.float64) for xy in outline if len(xy) >= 6]
        if not outline:  # something is there, but not known where: its box is ignored
            x, y, width, height = annotation["bbox"]
            right, low = x + width, y + height
            outline, value = [np.array([x, y, right, y, right, low, x, low], np.float64)], HIGHEST
        objects.append(_Object(HIGHEST if annotation.get("iscrowd") else value, outline))
    return int(image["height"]), int(image["width"]), tuple(objects)


def _panoptic(
    folder: Path, image: Mapping[str, Any], about: Sequence[Any], values: Mapping[int, int | None]
) -> tuple[Path, dict[int, int]]:
    """What `PanopticMasks` makes an image's mask from."""
    segments = {0: HIGHEST}
    for segment in about[0]["segments_info"] if about else ():
        value = values[segment["category_id"]]
        crowd = segment.get("iscrowd") and value is not None
        segments[segment["id"]] = HIGHEST if crowd else value or 0
    return folder / (about[0]["file_name"] if about else image["file_name"]), segments
