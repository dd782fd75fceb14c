"""Pascal VOC: an XML file of boxes for each image, and palette PNGs as masks.

VOC counts pixels from 1 and includes the last: a box of 1, 1, 640, 480 covers an image of that
size. Its corners are 0, 0, 640, 480, so 1 is subtracted from xmin and ymin only. Many tools write
the same files but count from 0. There, boxes cut off by the left or upper edge start at 0 instead
of 1, so where more boxes start at 0 than at 1 nothing is subtracted.

A box whose xmax is not above xmin has no width. By VOC's count it could be one pixel wide, but in
practice it is a click without a drag.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.errors import DataError, FileError
from mobilevit.data.formats.base import (
    IGNORE,
    MISSING_IMAGES,
    Content,
    DatasetBuilder,
    Format,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.files import (
    FileTree,
    find_split,
    find_split_in_path,
    has_image_extension,
    match_files,
    normalize_name,
    read_bytes,
    read_text,
)
from mobilevit.data.formats.mask_folders import pair_files
from mobilevit.data.formats.masks import class_values, read_class_file, voc_palette

_NAME = "Pascal VOC"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_HEAD_BYTES = 4096
_MASK_LISTS = {"train": ("train_aug", "trainaug", "train"), "val": ("val",)}


# Boxes


class _EntityError(Exception):
    """An XML file that declares entities."""


@dataclass
class _Object:
    line: int
    name: str = ""
    difficult: bool = False
    sides: dict[str, str] = field(default_factory=dict)


@dataclass
class _Annotation:
    root: str = ""
    """Name of the outermost element."""
    filename: str = ""
    size: dict[str, str] = field(default_factory=dict)
    objects: list[_Object] = field(default_factory=list)
    error: FileError | None = None


def looks_like_voc(file: Path) -> bool:
    """Whether a file starts like an XML `annotation`."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES).replace(b"\0", b"")  # UTF-16
    except OSError:
        return False
    return re.search(rb"<annotation[\s>]", head, re.IGNORECASE) is not None


def read_boxes(tree: FileTree) -> ParsedDataset:
    """Read all XML files of a folder whose outermost element is `annotation`.

    The image of an XML file has the same name, and lies next to it or in a folder such as
    `JPEGImages` or `images`; else it is the one that `filename` names there. Classes are the sorted
    names of all objects. Splits are the lists in `ImageSets/Main`, else folders named `train`,
    `val` and so on. A list's last word is dropped if it is -1, 0 or 1, VOC's flag for whether a
    class occurs.
    """
    builder = DatasetBuilder(tree.root, "voc", _NAME)
    xmls: list[str] = []
    annotations: list[_Annotation] = []
    for file in tree.with_extension(".xml"):
        parsed = _parse_xml(file)
        if parsed.root.casefold() not in ("annotation", ""):
            builder.add_unused(file, f"XML of another kind (<{parsed.root}>)")
            continue
        if parsed.error is not None:
            builder.add_error(parsed.error, image=len(xmls))
        xmls.append(str(file))
        annotations.append(parsed)
    labels: dict[str, int] = {}
    images = _find_images(xmls, annotations, tree.images)
    for path, parsed, image in zip(xmls, annotations, images, strict=True):
        expected = os.path.splitext(path)[0] + ".jpg"
        index = builder.add_image(
            image or expected, annotation_file=path, size=_stated_size(parsed)
        )
        if image is None:
            message = f"image missing: none has its name, or is {parsed.filename or 'a filename'}"
            builder.add_issue(path, message, category=MISSING_IMAGES, image=index)
        for thing in parsed.objects:
            _add_box(builder, index, path, thing, labels)
    _convert_corners(builder)
    used = set(images)
    for path in tree.images:
        if path not in used:
            builder.add_unused(path, "no XML file belongs to it")
    builder.splits = _splits_by_lists(tree, xmls, builder) or _splits_by_folders(tree.root, xmls)
    listed = {index for indices in builder.splits.values() for index in indices}
    for index, path in enumerate(xmls if builder.splits else ()):
        if index not in listed:
            builder.add_unused(path, "in no split")
    classes = sorted(labels)
    return builder.build(
        classes, classes_by_use=True, label_map=[classes.index(name) for name in labels]
    )


def _parse_xml(path: Path) -> _Annotation:
    """Read one XML file, as far as possible."""
    parsed = _Annotation()
    try:
        _feed_parser(path, read_bytes(path), parsed)
    except FileError as error:
        parsed.error = error
    return parsed


def _feed_parser(path: Path, content: bytes, parsed: _Annotation) -> None:
    """Parse an XML file into `parsed`; raise `FileError` for what cannot be read."""
    parser = expat.ParserCreate()
    declared = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)", content)
    if declared and declared[1].lower() != b"utf-8":
        # expat knows four encodings, Python many: GB2312, windows-1251, ...
        try:
            content = content.decode(declared[1].decode()).encode()
        except (LookupError, ValueError) as error:
            message = f"not in the encoding that it states, or that is unknown: {error}"
            raise FileError(f"{path}:1", message) from error
        parser = expat.ParserCreate("utf-8")
    _set_handlers(parser, parsed)
    try:
        parser.Parse(content, True)
    except _EntityError:
        where = f"{path}:{parser.CurrentLineNumber}"
        raise FileError(where, "declares entities, which are not read") from None
    except expat.ExpatError as error:
        message = f"malformed XML: {expat.ErrorString(error.code)}"
        raise FileError(f"{path}:{error.lineno}", message) from error


def _set_handlers(parser: expat.XMLParserType, parsed: _Annotation) -> None:
    """Set handlers that fill `parsed` from VOC's elements and skip the rest."""
    above: list[str] = []
    text: list[str] = []

    def start(name: str, _: object) -> None:
        text.clear()
        if not above:
            parsed.root = name
        elif len(above) == 1 and name == "object":
            parsed.objects.append(_Object(parser.CurrentLineNumber))
        above.append(name)

    def end(name: str) -> None:
        above.pop()
        value = "".join(text).strip()
        text.clear()
        match above[1:]:
            case [] if name == "filename" and above:
                parsed.filename = value
            case ["size"]:
                parsed.size.setdefault(name, value)
            case ["object"] if name == "name":
                parsed.objects[-1].name = value
            case ["object"] if name == "difficult":
                parsed.objects[-1].difficult = value.lower() in ("1", "true", "yes")
            case ["object", "bndbox"]:  # that of a <part> lies deeper
                parsed.objects[-1].sides.setdefault(name, value)

    def refuse(*_: object) -> None:
        raise _EntityError

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    # Entities may expand a few bytes to gigabytes, or include other files.
    parser.EntityDeclHandler = refuse


def _add_box(
    builder: DatasetBuilder, image: int, path: str, thing: _Object, labels: dict[str, int]
) -> None:
    """Add an object as a box; labels are numbered in order of appearance."""
    where = f"{path}:{thing.line}"
    if not thing.name:
        builder.add_issue(where, "object without a name", image=image)
        return
    corners = []
    for side in _SIDES:
        if side not in thing.sides:
            builder.add_issue(where, f"object without {side} in a bndbox", image=image)
            return
        try:
            corners.append(float(thing.sides[side]))
        except ValueError:
            message = f"{side} is not a number: {thing.sides[side]!r:.50}"
            builder.add_issue(where, message, image=image)
            return
    label = labels.setdefault(thing.name, len(labels))
    builder.add_box(image, corners, label, crowd=thing.difficult, line=thing.line)


def _convert_corners(builder: DatasetBuilder) -> None:
    """Convert VOC's pixel counts to corners, unless boxes count from 0."""
    corners = builder.corners()
    starts = corners[:, :2]
    valid = (corners[:, 2:] > starts).all(axis=1)
    at_edge = [int(((starts[valid] >= low) & (starts[valid] < low + 1)).sum()) for low in (0, 1)]
    if at_edge[0] > at_edge[1]:
        builder.notes.append("coordinates count from 0, as boxes start there")
    else:
        corners[valid, :2] -= 1


def _stated_size(parsed: _Annotation) -> tuple[int, int] | None:
    """(height, width) as stated; None where they are not numbers."""
    try:
        height, width = (float(parsed.size.get(side, "")) for side in ("height", "width"))
        return int(height), int(width)
    except (ValueError, OverflowError):
        return None


def _find_images(
    xmls: list[str], annotations: list[_Annotation], images: list[str]
) -> list[str | None]:
    stated = [
        os.path.join(os.path.dirname(path), os.path.basename(one.filename.replace("\\", "/")))
        for path, one in zip(xmls, annotations, strict=True)
    ]
    found: list[str | None] = []
    pairs = zip(match_files(xmls, images), match_files(stated, images), stated, strict=True)
    for by_stem, by_filename, name in pairs:
        matches = by_stem or by_filename
        # Of 1.jpg and 1.png, prefer the stated one.
        exact = (match for match in matches if _base(match) == _base(name))
        found.append(next(exact, matches[0] if matches else None))
    return found


def _base(path: str) -> str:
    return normalize_name(os.path.basename(path))


def _splits_by_lists(
    tree: FileTree, xmls: list[str], builder: DatasetBuilder
) -> dict[str, list[int]]:
    """Splits by the lists in `ImageSets/Main` or `ImageSets`."""
    splits: dict[str, list[int]] = {}
    for file in tree.with_extension(".txt"):
        folder = file.parent.parent if file.parent.name.lower() == "main" else file.parent
        split = find_split(file.stem)
        if folder.name.lower() != "imagesets" or split is None:
            continue
        members = splits.setdefault(split, [])
        try:
            lines = read_text(file).splitlines()
        except FileError as error:
            builder.add_error(error, split=split)
            continue
        # Where a folder has several years, each has its own lists, for the files next to them.
        indices = _list_keys(xmls, os.fspath(folder.parent))
        for number, line in enumerate(lines, start=1):
            index = next((indices[key] for key in _line_keys(line) if key in indices), None)
            if index is not None:
                members.append(index)
            elif line.strip():
                message = f"no XML file for {line.strip()!r}"
                builder.add_issue(f"{file}:{number}", message, split=split)
    return {split: list(dict.fromkeys(members)) for split, members in splits.items()}


def _list_keys(xmls: list[str], folder: str) -> dict[str, int]:
    """Keys by which lists name the XML files in their folder: `1`, or deeper `night/1`."""
    inside = [
        (index, os.path.relpath(path, folder))
        for index, path in enumerate(xmls)
        if path.startswith(os.path.join(folder, ""))
    ]
    keys = {_list_key(os.path.basename(path)): index for index, path in inside}
    return keys | {_list_key(path.partition(os.sep)[2] or path): index for index, path in inside}


def _line_keys(line: str) -> Iterable[str]:
    """Keys under which a line's file may be found, likeliest first."""
    line = line.strip()
    for name in (line, re.sub(r"\s+(-1|0|1)$", "", line)):
        yield _list_key(name + ".xml")
        if has_image_extension(name) or name.lower().endswith(".xml"):
            yield _list_key(name)
            yield _list_key(os.path.basename(name))


def _list_key(path: str) -> str:
    return normalize_name(os.path.splitext(path)[0]).replace("\\", "/")


def _splits_by_folders(root: Path, xmls: list[str]) -> dict[str, list[int]]:
    splits: dict[str, list[int]] = {}
    for index, path in enumerate(xmls):
        split = find_split_in_path(path, root)
        if split is not None:
            splits.setdefault(split, []).append(index)
    return splits


# Masks


def find_mask_folder(root: Path) -> Path | None:
    """The folder, `root` or one in it, with VOC's layout and a list of validation images."""
    for base in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (base / "JPEGImages").is_dir() and _mask_list(base, "val"):
            return base
    return None


def read_masks(tree: FileTree) -> ParsedDataset:
    """Read palette PNGs, listed in ImageSets/Segmentation or `list`; 255 is ignored.

    Training images are listed in `train_aug.txt` or `trainaug.txt` (VOC and SBD), else in
    `train.txt`. Lines may hold two paths: image and mask. Masks are in SegmentationClass or else in
    SegmentationClassAug; RGB masks are read by VOC's colours. Classes are VOC's unless a class file
    in the folder names others.
    """
    base = find_mask_folder(tree.root)
    if base is None:
        raise DataError(f"{tree.root}: has no JPEGImages with ImageSets/Segmentation/val.txt")
    builder = DatasetBuilder(base, "voc", _NAME)
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    origins: dict[str, str] = {}
    for split in _MASK_LISTS:
        if (file := _mask_list(base, split)) is not None:
            pairs[split], origins[split] = _listed_pairs(base, file), str(file)
    stated = read_class_file(base, IGNORE)
    names = dict(enumerate(VOC_CLASSES)) if stated is None else stated.names
    palette = {colour: value for value, colour in enumerate(voc_palette())}
    colours = palette if stated is None or stated.colours is None else stated.colours
    return pair_files(builder, pairs, class_values(names), colours=colours, origins=origins)


def _listed_pairs(base: Path, file: Path) -> list[tuple[Path, Path]]:
    pairs = []
    for line in filter(None, map(str.strip, read_text(file).splitlines())):
        if "/" in line and len(both := line.split()) == 2:
            image, mask = both
            pairs.append((base / image.lstrip("/"), base / mask.lstrip("/")))
        else:
            images = (base / "JPEGImages" / f"{line}{end}" for end in (".jpg", ".jpeg", ".png"))
            folders = ("SegmentationClass", "SegmentationClassAug")
            masks = (base / folder / f"{line}.png" for folder in folders)
            pairs.append((_first_file(images), _first_file(masks)))
    return pairs


def _mask_list(base: Path, split: str) -> Path | None:
    for name in _MASK_LISTS[split]:
        for folder in (base / "ImageSets" / "Segmentation", base / "list"):
            if (file := folder / f"{name}.txt").is_file():
                return file
    return None


def _first_file(paths: Iterable[Path]) -> Path:
    """The first path that is a file, or the first one."""
    candidates = list(paths)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _matches(tree: FileTree, content: Content) -> bool:
    if content == "masks":
        return find_mask_folder(tree.root) is not None
    return not tree.root.is_file() and any(map(looks_like_voc, tree.with_extension(".xml")))


def _read(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    if options.content == "masks":
        return [read_masks(tree)]
    return [read_boxes(tree)] if tree.with_extension(".xml") and tree.root.is_dir() else []


FORMAT = Format(
    name="voc",
    display_name=_NAME,
    contents=frozenset(["boxes", "masks"]),
    looks_for="Pascal VOC (.xml files; for masks JPEGImages and ImageSets/Segmentation/val.txt)",
    matches=_matches,
    read=_read,
)
