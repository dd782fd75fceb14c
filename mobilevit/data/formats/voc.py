"""Pascal VOC's XML files, one for each image -> images with boxes.

VOC counts pixels from 1 and includes the last: a box of 1, 1, 640, 480 is the whole of an image
of that size. As corners that is 0, 0, 640, 480, so 1 is taken from xmin and ymin, and nothing from
xmax and ymax. Many tools write the same files but count from 0. In such a set boxes cut by the left
or upper edge start at 0, not at 1, so where more start at 0 nothing is taken away.

Where xmax is not above xmin a box has no width. By VOC's count it could be one pixel wide, but what
it always is in practice is a click without a drag.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np

from mobilevit.data.formats.base import (
    Draft,
    FileError,
    Reading,
    files_below,
    pair,
    read_bytes,
    read_text,
    same_name,
    split_of,
    split_of_path,
)
from mobilevit.data.formats.folders import has_image_extension

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_PEEK = 4096


class _RefusedError(Exception):
    """An XML file that declares entities."""


@dataclass
class _Object:
    line: int
    name: str = ""
    difficult: bool = False
    sides: dict[str, str] = field(default_factory=dict)


@dataclass
class _Parsed:
    """One XML file."""

    root: str = ""
    """Name of the outermost element."""
    filename: str = ""
    size: dict[str, str] = field(default_factory=dict)
    objects: list[_Object] = field(default_factory=list)
    error: FileError | None = None


def looks_like_voc(file: Path) -> bool:
    """Whether a file starts as an XML `annotation`, or at least as XML that may be one."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_PEEK).replace(b"\0", b"")  # UTF-16
    except OSError:
        return False
    return re.search(rb"<annotation[\s>]", head, re.IGNORECASE) is not None


def read_voc(root: Path) -> Reading:
    """Read all XML files of a folder whose outermost element is `annotation`.

    The image of an XML file is the one of the same name, as in VOC's own tools, with any
    extension: beside it, or in the folder `JPEGImages`, `images` or the like; else the one that its
    `filename` names there. Classes are the names of all objects, sorted. Splits are the lists in
    `ImageSets/Main`, else folders called `train`, `val` and so on. Of a list's lines the last word
    is dropped if it is -1, 0 or 1, VOC's sign of whether a class occurs.

    Raises:
        DataError: a folder cannot be listed.
    """
    images, others = files_below(root)
    draft = Draft(root, "voc")
    kept: list[str] = []
    parsed: list[_Parsed] = []
    unused: list[str] = []
    for path in others:
        if not path.lower().endswith(".xml"):
            continue
        found = _parse(Path(path))
        if found.root.casefold() not in ("annotation", ""):
            unused.append(f"{path}: XML of another kind (<{found.root}>)")
            continue
        if found.error is not None:
            draft.fault(found.error.where, found.error.what, image=len(kept))
        kept.append(path)
        parsed.append(found)
    labels: dict[str, int] = {}
    own = _find(kept, parsed, images)
    for path, found, image in zip(kept, parsed, own, strict=True):
        file = os.path.splitext(path)[0] + ".jpg" if image is None else image
        place = draft.add_image(file, annotated_by=path, size=_size(found))
        if image is None:
            what = f"image missing: none of that name, nor {found.filename or 'a filename'}"
            draft.fault(path, what, image=place, missing=True)
        for thing in found.objects:
            _add(draft, place, path, thing, labels)
    remark = _count_from_zero(draft.corners())
    classes = sorted(labels)
    used = set(own)
    unused += [f"{path}: no XML file belongs to it" for path in images if path not in used]
    splits = _lists(root, others, kept, draft) or _folders(root, kept)
    listed = {index for indices in splits.values() for index in indices}
    if splits:
        unused += [f"{kept[i]}: in no split" for i in range(len(kept)) if i not in listed]
    return draft.finish(
        classes,
        range(1, len(classes) + 1),
        moved=[classes.index(name) for name in labels],
        splits=splits,
        remarks=remark,
        unused=unused,
    )


def _parse(path: Path) -> _Parsed:
    """Read one XML file, as far as it goes."""
    parsed = _Parsed()
    try:
        _feed(path, read_bytes(path), parsed)
    except FileError as error:
        parsed.error = error
    return parsed


def _feed(path: Path, content: bytes, parsed: _Parsed) -> None:
    """Parse an XML file into `parsed`.

    Raises:
        FileError: it is not well formed, in an unknown encoding, or declares entities.
    """
    parser = expat.ParserCreate()
    declared = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)", content)
    if declared and declared[1].lower() != b"utf-8":
        # expat knows four encodings, Python many: GB2312, windows-1251, ...
        try:
            content = content.decode(declared[1].decode()).encode()
        except (LookupError, ValueError) as error:
            what = f"not in the encoding that it states, or that is unknown: {error}"
            raise FileError(f"{path}:1", what) from error
        parser = expat.ParserCreate("utf-8")
    _listen(parser, parsed)
    try:
        parser.Parse(content, True)
    except _RefusedError:
        where = f"{path}:{parser.CurrentLineNumber}"
        raise FileError(where, "declares entities, which are not read") from None
    except expat.ExpatError as error:
        what = f"malformed XML: {expat.ErrorString(error.code)}"
        raise FileError(f"{path}:{error.lineno}", what) from error


def _listen(parser: expat.XMLParserType, parsed: _Parsed) -> None:
    """Have a parser fill `parsed` with what stands at VOC's places; the rest is passed over."""
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
        raise _RefusedError

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    # Entities may stand for each other, and grow a few bytes to gigabytes, or for other files.
    parser.EntityDeclHandler = refuse


def _add(draft: Draft, image: int, path: str, thing: _Object, labels: dict[str, int]) -> None:
    """Add an object as a box; labels are given in order of appearance."""
    where = f"{path}:{thing.line}"
    if not thing.name:
        draft.fault(where, "object without a name", image=image)
        return
    values = []
    for side in _SIDES:
        if side not in thing.sides:
            draft.fault(where, f"object without {side} in a bndbox", image=image)
            return
        try:
            values.append(float(thing.sides[side]))
        except ValueError:
            what = f"{side} is no number: {thing.sides[side]!r:.50}"
            draft.fault(where, what, image=image)
            return
    label = labels.setdefault(thing.name, len(labels))
    draft.add_box(image, values, label, crowd=thing.difficult, line=thing.line)


def _count_from_zero(corners: np.ndarray) -> tuple[str, ...]:
    """Turn VOC's count of pixels into corners, in place; a remark where nothing is to be done."""
    starts = corners[:, :2]
    sized = (corners[:, 2:] > starts).all(axis=1)
    at_edge = [int(((starts[sized] >= low) & (starts[sized] < low + 1)).sum()) for low in (0, 1)]
    if at_edge[0] > at_edge[1]:
        return ("coordinates count from 0, as boxes start there",)
    corners[sized, :2] -= 1
    return ()


def _size(parsed: _Parsed) -> tuple[int, int] | None:
    """(height, width) as stated; None where they are no numbers."""
    try:
        height, width = (float(parsed.size.get(side, "")) for side in ("height", "width"))
        return int(height), int(width)
    except (ValueError, OverflowError):
        return None


def _find(xmls: list[str], parsed: list[_Parsed], images: list[str]) -> list[str | None]:
    """The image of each XML file."""
    named = [
        os.path.join(os.path.dirname(path), os.path.basename(one.filename.replace("\\", "/")))
        for path, one in zip(xmls, parsed, strict=True)
    ]
    found: list[str | None] = []
    pairs = zip(pair(xmls, images), pair(named, images), named, strict=True)
    for by_stem, by_filename, name in pairs:
        hits = by_stem or by_filename
        # Of 1.jpg and 1.png the one that is named.
        exact = (hit for hit in hits if _base(hit) == _base(name))
        found.append(next(exact, hits[0] if hits else None))
    return found


def _base(path: str) -> str:
    return same_name(os.path.basename(path))


def _lists(root: Path, others: list[str], xmls: list[str], draft: Draft) -> dict[str, list[int]]:
    """The splits that `ImageSets/Main`, or `ImageSets` itself, states."""
    splits: dict[str, list[int]] = {}
    for path in others:
        file = Path(path)
        folder = file.parent.parent if file.parent.name.lower() == "main" else file.parent
        split = split_of(file.stem)
        if folder.name.lower() != "imagesets" or file.suffix.lower() != ".txt" or split is None:
            continue
        members = splits.setdefault(split, [])
        try:
            lines = read_text(file).splitlines()
        except FileError as error:
            draft.fault(error.where, error.what, split=split)
            continue
        # With several years in a folder each has lists of its own, for what is beside them.
        place = _keys(xmls, os.fspath(folder.parent))
        for number, line in enumerate(lines, start=1):
            index = next((place[key] for key in _spellings(line) if key in place), None)
            if index is not None:
                members.append(index)
            elif line.strip():
                draft.fault(f"{path}:{number}", f"no XML file for {line.strip()!r}", split=split)
    return {split: list(dict.fromkeys(members)) for split, members in splits.items()}


def _keys(xmls: list[str], folder: str) -> dict[str, int]:
    """What a list may call each XML file of its folder: `1`, or `night/1` if it lies deeper."""
    inside = [(i, os.path.relpath(p, folder)) for i, p in enumerate(xmls) if _is_in(p, folder)]
    place = {_list_key(os.path.basename(path)): index for index, path in inside}
    place |= {_list_key(path.partition(os.sep)[2] or path): index for index, path in inside}
    return place


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _spellings(line: str) -> Iterable[str]:
    """The keys under which the file that a list's line names may be found, the likeliest first."""
    line = line.strip()
    for name in (line, re.sub(r"\s+(-1|0|1)$", "", line)):
        yield _list_key(name + ".xml")
        if has_image_extension(name) or name.lower().endswith(".xml"):
            yield _list_key(name)
            yield _list_key(os.path.basename(name))


def _list_key(path: str) -> str:
    return same_name(os.path.splitext(path)[0]).replace("\\", "/")


def _folders(root: Path, xmls: list[str]) -> dict[str, list[int]]:
    """The splits that the folders' names state."""
    splits: dict[str, list[int]] = {}
    for index, path in enumerate(xmls):
        split = split_of_path(path, root)
        if split is not None:
            splits.setdefault(split, []).append(index)
    return splits
