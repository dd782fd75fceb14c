"""Images, masks and whole data sets for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.data.formats.base import UNUSED_FILES, ParsedDataset, ReadOptions
from mobilevit.data.formats.registry import parse
from mobilevit.data.open import open_evaluation, open_splits, select_usable
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples, Samples
from mobilevit.data.validate import validate
from mobilevit.tasks.detection.dataset import BoxSamples

ORIENTATION = 0x0112


def write(root: Path, name: str, content: str | bytes = "") -> Path:
    """A text or binary file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def touch(root: Path, *names: str) -> Path:
    """Empty files, for readers that do not open them."""
    for name in names:
        write(root, name)
    return root


def image(
    path: Path, size: tuple[int, int] = (100, 80), *, orientation: int = 1, seed: int | None = None
) -> Path:
    """A black image of (width, height), or one of noise, like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    format_ = {".png": "PNG"}.get(path.suffix.lower(), "JPEG")
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 255, pixels.shape, np.uint8)
    Image.fromarray(pixels).save(path, format_, exif=exif)
    return path


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """The file of an image; `options` are those of Pillow's `save`, and `orientation` of EXIF."""
    if "orientation" in options:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = options.pop("orientation")
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def image_bytes(seed: int, format: str = "JPEG", *, size: tuple[int, int] = (48, 40)) -> bytes:
    """The file of an image of noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return encode(Image.fromarray(noise), format)


def mask(path: Path, *values: int, size: tuple[int, int] = (8, 6)) -> Path:
    """An index mask with these values, over and over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size[::-1])).save(path)
    return path


# Opening


def opened(
    dataset: ParsedDataset,
    split: str | None = None,
    *,
    on_bad: Any = "error",
    samples_type: type[Any] = BoxSamples,
) -> Any:
    """Samples of a parsed data set, as training gets them when it does not look at image files."""
    name = split or "all"
    samples = samples_type.from_dataset(dataset, None if split is None else dataset.splits[split])
    report = validate(
        dataset.root, {name: samples}, issues=Samples.check_split(samples, name),
        depth="annotations", warnings=False,
    )  # fmt: skip
    return select_usable(report, {name: samples}, on_bad)[name]


def unused(dataset: ParsedDataset) -> list[str]:
    """Messages about files that are not part of a data set."""
    return [str(issue) for issue in dataset.issues if issue.category == UNUSED_FILES]


def stems(samples: Samples) -> list[str]:
    """The images' names without extensions."""
    return [Path(samples.name(index)).stem for index in range(len(samples))]


# Boxes: one tiny data set, in every format


@dataclass(frozen=True)
class Annotated:
    """An image of 100 x 80 with boxes: (x1, y1, x2, y2) -> class."""

    name: str
    boxes: Mapping[tuple[int, int, int, int], str] = field(default_factory=dict)


BOXES: dict[str, list[Annotated]] = {
    "train": [
        Annotated("a", {(10, 20, 40, 60): "cat", (0, 0, 100, 80): "dog"}),
        Annotated("b", {(50, 8, 70, 16): "dog"}),
        Annotated("empty"),
    ],
    "val": [Annotated("c", {(30, 40, 60, 80): "dog"})],
}
CLASSES = ("cat", "dog")


def voc_object(name: str, *sides: object, difficult: object = 0, more: str = "") -> str:
    tags = "".join(
        f"<{tag}>{side}</{tag}>"
        for tag, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    )
    return (
        f"<object>\n<name>{name}</name>{more}<difficult>{difficult}</difficult>\n"
        f"<bndbox>{tags}</bndbox></object>\n"
    )


def voc_xml(
    objects: Iterable[str] = (), *, filename: str = "", size: tuple[object, object] | None = None
) -> str:
    stated = "" if size is None else f"<width>{size[0]}</width><height>{size[1]}</height>"
    return (
        f"<annotation>\n<filename>{filename}</filename><size>{stated}</size>\n"
        f"{''.join(objects)}</annotation>\n"
    )


def coco_box(number: Any, image: Any = 5, category: Any = 1, **more: Any) -> dict[str, Any]:
    bbox = more.pop("bbox", [10, 20, 30, 40])
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def coco_json(
    file: Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Any],
    categories: Mapping[int, str],
) -> Path:
    names = [{"id": number, "name": name} for number, name in categories.items()]
    content = {"images": images, "annotations": annotations, "categories": names}
    return write(file.parent, file.name, json.dumps(content))


def write_voc(root: Path, splits: Mapping[str, list[Annotated]] = BOXES) -> Path:
    for split, images in splits.items():
        for one in images:
            image(root / split / f"{one.name}.png")
            things = [
                voc_object(name, x1 + 1, y1 + 1, x2, y2)
                for (x1, y1, x2, y2), name in one.boxes.items()
            ]
            write(root, f"{split}/{one.name}.xml", voc_xml(things, size=(100, 80)))
    return root


def write_yolo(root: Path, splits: Mapping[str, list[Annotated]] = BOXES) -> Path:
    names = sorted(
        {name for images in splits.values() for i in images for name in i.boxes.values()}
    )
    for split, images in splits.items():
        for one in images:
            image(root / split / "images" / f"{one.name}.png")
            lines = [
                f"{names.index(name)} {(x1 + x2) / 200} {(y1 + y2) / 160} "
                f"{(x2 - x1) / 100} {(y2 - y1) / 80}"
                for (x1, y1, x2, y2), name in one.boxes.items()
            ]
            write(root, f"{split}/labels/{one.name}.txt", "\n".join(lines))
    write(root, "classes.txt", "\n".join(names))
    return root


def write_coco(root: Path, splits: Mapping[str, list[Annotated]] = BOXES) -> Path:
    names = sorted(
        {name for images in splits.values() for i in images for name in i.boxes.values()}
    )
    for split, images in splits.items():
        entries, annotations = [], []
        for number, one in enumerate(images, start=100):
            image(root / "images" / f"{split}-{one.name}.png")
            entries.append({"id": number, "file_name": f"{split}-{one.name}.png"})
            for (x1, y1, x2, y2), name in one.boxes.items():
                bbox = [x1, y1, x2 - x1, y2 - y1]
                category = 1 + 4 * names.index(name)
                annotations.append(coco_box(len(annotations) + 1, number, category, bbox=bbox))
        categories = {1 + 4 * place: name for place, name in enumerate(names)}
        file = root / "annotations" / f"instances_{split}.json"
        coco_json(file, entries, annotations, categories)
    return root


def write_csv(root: Path, splits: Mapping[str, list[Annotated]] = BOXES) -> Path:
    for split, images in splits.items():
        lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for one in images:
            image(root / split / f"{one.name}.png")
            rows = [f"{name},{','.join(map(str, box))}" for box, name in one.boxes.items()]
            lines += [f"{one.name}.png,100,80,{row}" for row in rows or [",,,,"]]
        write(root, f"{split}/_annotations.csv", "\n".join(lines))
    return root


def _outline(box: tuple[int, int, int, int]) -> list[list[int]]:
    x1, y1, x2, y2 = box
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def write_labelme(
    root: Path, splits: Mapping[str, list[Annotated]] = BOXES, *, polygons: bool = False
) -> Path:
    for split, images in splits.items():
        for one in images:
            image(root / split / f"{one.name}.png")
            shapes = [
                {
                    "label": name,
                    "points": _outline(box) if polygons else [box[:2], box[2:]],
                    "group_id": None,
                    "description": "",
                    "shape_type": "polygon" if polygons else "rectangle",
                    "flags": {},
                    "mask": None,
                }
                for box, name in one.boxes.items()
            ]
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": f"{one.name}.png",
                "imageData": None,
                "imageHeight": 80,
                "imageWidth": 100,
            }
            write(root, f"{split}/{one.name}.json", json.dumps(content))
    return root


def write_cvat(
    root: Path, splits: Mapping[str, list[Annotated]] = BOXES, *, polygons: bool = False
) -> Path:
    entries = []
    for split, images in splits.items():
        for one in images:
            name = f"{split}-{one.name}.png"
            image(root / "images" / name)
            subset = "" if split == "all" else f' subset="{split}"'
            entries.append(
                f'<image id="{len(entries)}" name="{name}"{subset} width="100" height="80">'
            )
            for box, label in one.boxes.items():
                if polygons:
                    shape = "polygon"
                    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in _outline(box))
                    place = f'points="{points}"'
                else:
                    shape = "box"
                    sides = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
                    place = " ".join(f'{side}="{value:.2f}"' for side, value in sides)
                entries.append(
                    f'<{shape} label="{label}" source="manual" occluded="0" {place} z_order="0">'
                    f"</{shape}>"
                )
            entries.append("</image>")
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog"))
    meta = f"<meta><job><labels>{labels}</labels></job></meta>"
    text = "\n".join(["<annotations><version>1.1</version>", meta, *entries, "</annotations>"])
    write(root, "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')
    return root


def studio_result(kind: str, labels: Sequence[str], **value: Any) -> dict[str, Any]:
    """One region, or choice, of an image of 100 x 80 as Label Studio exports it."""
    return {
        "original_width": 100,
        "original_height": 80,
        "image_rotation": 0,
        "value": {**value, kind: list(labels)},
        "id": "Xy3",
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }


def studio_task(number: int, image: str, *annotations: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": [{"id": 7, "was_cancelled": False, **one} for one in annotations],
        "file_upload": Path(image).name,
        "data": {"image": image},
        "meta": {},
    }


def write_label_studio(
    root: Path, splits: Mapping[str, list[Annotated]] = BOXES, *, polygons: bool = False
) -> Path:
    for split, images in splits.items():
        tasks = []
        for number, one in enumerate(images):
            image(root / "images" / f"{split}-{one.name}.png")
            results = []
            for (x1, y1, x2, y2), name in one.boxes.items():
                if polygons:
                    points = [[x, y / 0.8] for x, y in _outline((x1, y1, x2, y2))]
                    results.append(
                        studio_result("polygonlabels", [name], points=points, closed=True)
                    )
                else:
                    place = {"x": x1, "y": y1 / 0.8, "width": x2 - x1, "height": (y2 - y1) / 0.8}
                    results.append(studio_result("rectanglelabels", [name], **place, rotation=0))
            uploaded = f"/data/upload/3/0a1b2c3d-{split}-{one.name}.png"
            tasks.append(studio_task(number, uploaded, {"result": results}))
        write(root, f"{split}.json", json.dumps(tasks))
    return root


BOX_WRITERS: dict[str, Callable[..., Path]] = {
    "coco": write_coco,
    "csv": write_csv,
    "voc": write_voc,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label_studio": write_label_studio,
}


# Masks


def write_mask_folders(root: Path, *, train: str = "train/", val: str = "val/") -> Path:
    """Four and two images of the classes 0 to 2."""
    for number in range(6):
        split = train if number < 4 else val
        image(root / f"{split}images/{number}.jpg", (8, 6))
        mask(root / f"{split}masks/{number}.png", 0, 1, 2)
    return root


def write_voc_masks(root: Path) -> Path:
    for split, name in (("train", "a"), ("val", "b")):
        image(root / f"JPEGImages/{name}.jpg", (8, 6))
        mask(root / f"SegmentationClass/{name}.png", 0, 20, 255)
        write(root, f"ImageSets/Segmentation/{split}.txt", name)
    return root


def write_ade20k(root: Path) -> Path:
    for folder in ("training", "validation"):
        image(root / f"images/{folder}/1.jpg", (8, 6))
        mask(root / f"annotations/{folder}/1.png", 0, 1, 150)
    write(root, "objectInfo150.txt")
    return root


def write_cityscapes(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("a_000000", "a_000001"):
            image(root / f"leftImg8bit/{split}/a/{name}_leftImg8bit.png", (8, 6))
            mask(root / f"gtFine/{split}/a/{name}_gtFine_labelIds.png", 0, 7, 26, 29, 33)
    return root


def write_coco_masks(root: Path) -> Path:
    """The same person and bicycle as instances and as panoptic segments."""
    ids = np.zeros((6, 8), np.uint8)
    ids[:4, :4] = 1
    for split in ("train2017", "val2017"):
        image(root / f"images/{split}/7.jpg", (8, 6))
        png = root / f"annotations/panoptic_{split}/7.png"
        png.parent.mkdir(parents=True)
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], 2)).save(png)
        entry = {"id": 7, "file_name": "7.jpg", "height": 6, "width": 8}
        outline = [[0, 0, 4, 0, 4, 4, 0, 4]]
        thing = {"image_id": 7, "category_id": 2, "segmentation": outline}
        segments = {
            "image_id": 7, "file_name": "7.png", "segments_info": [{"id": 1, "category_id": 2}],
        }  # fmt: skip
        for kind, annotation in (("instances", thing), ("panoptic", segments)):
            file = root / f"annotations/{kind}_{split}.json"
            coco_json(file, [entry], [annotation], {1: "person", 2: "bicycle"})
    return root


def write_roboflow_masks(root: Path) -> Path:
    """Six images to train on and two to validate on, of three classes."""
    for split, count in (("train", 6), ("valid", 2)):
        for number in range(count):
            name = f"{split}/{number}_jpg.rf.{number}a"
            image(root / f"{name}.jpg", (8, 6))
            mask(root / f"{name}_mask.png", 0, 1, 2)
        write(root, f"{split}/_classes.csv", "Pixel Value, Class\n0, background\n1, leaf\n2, rot\n")
    return root


MASK_WRITERS: dict[str, Callable[..., Path]] = {
    "folders": write_mask_folders,
    "voc": write_voc_masks,
    "ade20k": write_ade20k,
    "cityscapes": write_cityscapes,
    "coco": write_coco_masks,
    "roboflow": write_roboflow_masks,
    "labelme": partial(write_labelme, polygons=True),
    "cvat": partial(write_cvat, polygons=True),
    "label_studio": partial(write_label_studio, polygons=True),
}


# Labels


def read_labels(root: Path) -> ParsedDataset:
    (dataset,) = parse(root, ReadOptions("labels"))
    return dataset


def labelled_images(root: Path) -> LabelSamples:
    """All images of a folder of class folders."""
    return LabelSamples.from_dataset(read_labels(root))


def write_class_folders(root: Path) -> Path:
    """Twelve images of cats and twelve of dogs, ten and two of each in train and val."""
    for number in range(24):
        split = "val" if number % 12 >= 10 else "train"
        name = "cat" if number < 12 else "dog"
        write(root, f"{split}/{name}/{number}.jpg", image_bytes(number))
    return root


def shard_splits(root: object, *, index: str | None = None, val_fraction: float = 0.2) -> Any:
    """Shards to train on and to evaluate on."""
    data = DataOptions(root=str(root), index=index, val_fraction=val_fraction)
    return open_splits(LabelSamples, data)


def shard_evaluation(root: object, classes: Sequence[str], *, index: str | None = None) -> Any:
    """Shards to evaluate on."""
    return open_evaluation(LabelSamples, DataOptions(root=str(root), index=index), classes=classes)
