"""COCO's JSON of instances -> images with boxes."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilevit.data.formats.base import Draft, Reading, files_below, same_name, split_of
from mobilevit.data.formats.folders import join_names

_NEEDED = ("images", "annotations", "categories")
_IMAGE_FOLDERS = ("images", "imgs", "img", "JPEGImages", "data")
_NAN = float("nan")


def looks_like_coco(file: Path) -> bool:
    """Whether a file has COCO's keys somewhere in its text; it is not parsed."""
    try:
        with file.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return False
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
                keys = (b'"%s"' % key.encode() for key in _NEEDED)
                starts = text[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
                return starts and all(text.find(key) >= 0 for key in keys)
    except OSError:
        return False


def read_coco(file: Path, root: Path | None = None) -> Reading:
    """Read a JSON of instances.

    Classes are its categories in order of id, whatever the ids are. `bbox` is x, y, width, height
    in pixels. Images are looked for by `file_name` in `root`, beside the JSON, and in the folders
    there that are usual: `images`, the split in the JSON's name, and both. Only if not one is
    there are they looked for by name alone, anywhere in `root`. Images without annotations are
    kept. Boxes that are no four numbers are kept as such, to be left out and counted.

    Args:
        file: the JSON.
        root: the folder of the data set; unless given that of the JSON, or the one above where
            that is called `annotations`.
    """
    if root is None:
        root = file.parent
        if same_name(root.name) in ("annotations", "annotation"):
            root = root.parent
    draft = Draft(root, "coco")
    content = _load(file, draft)
    if content is None:
        return draft.finish((), ())
    names = _categories(content["categories"], file, draft)
    place = {number: label for label, number in enumerate(names)}
    images = _images(content["images"], file, draft)
    _annotations(content["annotations"], file, draft, place, images)
    return draft.finish(tuple(names.values()), tuple(names))


def _load(file: Path, draft: Draft) -> dict[str, Any] | None:
    """The JSON if it is one of instances; else what it is becomes a fault."""
    try:
        content = json.loads(file.read_bytes(), object_hook=_without_outline)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deep
        reason = f"not JSON: {error}"
    else:
        if not isinstance(content, dict):
            reason = f"not COCO's form: a {type(content).__name__} instead of an object"
        elif lacking := [key for key in _NEEDED if not isinstance(content.get(key), list)]:
            reason = f"not COCO's form of instances: lacks the {join_names('list', lacking)}"
        else:
            return content
    draft.fault(file, reason, skippable=False)
    return None


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """An object without the outline of what is in a box, which is most of the file."""
    entry.pop("segmentation", None)
    return entry


def _categories(entries: list[Any], file: Path, draft: Draft) -> dict[int, str]:
    """Id -> name, in order of id."""
    names: dict[int, str] = {}
    for entry in entries:
        number = _whole(_get(entry, "id"))
        name = _get(entry, "name")
        if number is None or name is None or not str(name).strip():
            draft.fault(file, f"category without id or name: {entry!r:.100}", skippable=False)
        elif number in names:
            draft.fault(file, f"two categories have the id {number}", skippable=False)
        else:
            names[number] = str(name).strip()
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        numbers = [number for number, name in names.items() if name in twice]
        what = f"{join_names('class', twice)} stated more than once, by the ids {numbers}"
        draft.fault(file, what, skippable=False)
    return dict(sorted(names.items()))


def _images(entries: list[Any], file: Path, draft: Draft) -> dict[int | str, int]:
    """Add the images; id -> place."""
    known: dict[int | str, int] = {}
    kept: list[dict[str, Any]] = []
    for entry in entries:
        number, name = _key(_get(entry, "id")), _get(entry, "file_name")
        if number is None or not isinstance(name, str) or not name:
            draft.fault(file, f"image without id or file_name: {entry!r:.100}", skippable=False)
        elif number in known:
            draft.fault(file, f"two images have the id {number}", skippable=False)
        else:
            known[number] = len(kept)
            kept.append(entry)
    # Where one is no number, all are numbered here instead.
    own = all(isinstance(number, int) for number in known)
    paths = _find(file, draft.root, [entry["file_name"] for entry in kept])
    for entry, number, path in zip(kept, known, paths, strict=True):
        size = _whole(_get(entry, "height")), _whole(_get(entry, "width"))
        image = draft.add_image(
            draft.root / _portable(entry["file_name"]) if path is None else path,
            annotated_by=file,
            size=(size[0] or 0, size[1] or 0),
            image_id=int(number) if own else None,
        )
        if path is None:
            what = f"image missing: {entry['file_name']} (image id {entry['id']})"
            draft.fault(file, what, image=image, missing=True)
    return known


def _annotations(
    entries: list[Any],
    file: Path,
    draft: Draft,
    place: dict[int, int],
    images: dict[int | str, int],
) -> None:
    """Add the boxes."""
    for running, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            draft.fault(file, f"annotation number {running} is {entry!r:.100}", skippable=False)
            continue
        number = _whole(entry.get("id"))
        owner, category = _key(entry.get("image_id")), _whole(entry.get("category_id"))
        image = None if owner is None else images.get(owner)
        label = None if category is None else place.get(category)
        if image is None or label is None:
            where = f"{file}: annotation {entry.get('id', f'number {running}')}"
        if image is None:
            draft.fault(where, f"no image has its image_id {entry.get('image_id')!r}")
        elif label is None:
            what = f"no category has its category_id {entry.get('category_id')!r}"
            draft.fault(where, what, image=image)
        else:
            draft.add_box(
                image,
                box_corners(entry.get("bbox")),
                label,
                crowd=_whole(entry.get("iscrowd")) not in (None, 0),
                area=_number(entry.get("area")),
                box_id=running if number is None else number,
            )


def box_corners(bbox: Any) -> tuple[float, float, float, float]:
    """x, y, width, height -> x1, y1, x2, y2; NaN where they are not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return _NAN, _NAN, _NAN, _NAN
    x, y, width, height = map(_number, bbox)
    return x, y, x + width, y + height


def _find(file: Path, root: Path, names: list[str]) -> list[str | None]:
    """The file of each image; None where there is none."""
    bases = list(_bases(file, root))
    found: list[str | None] = []
    for name in map(_portable, names):
        hit = None
        for place, base in enumerate(bases):
            candidate = os.path.join(base, name)
            if os.path.isfile(candidate):
                hit = candidate
                bases.insert(0, bases.pop(place))  # where one is, the next will be
                break
        found.append(hit)
    if None not in found:
        return found
    # Names that differ by capitals or by how accents are encoded, then those in folders with names
    # of their own; these only if all are, lest a missing image be replaced by one of test.
    everywhere: dict[str, list[str]] = {}
    by_path: dict[str, str] = {}
    for path in files_below(root)[0]:
        everywhere.setdefault(same_name(os.path.basename(path)), []).append(path)
        by_path[same_name(path)] = path
    for index, name in enumerate(map(_portable, names)):
        if found[index] is not None:
            continue
        spelt = (same_name(os.path.join(base, name)) for base in bases)
        found[index] = next((by_path[path] for path in spelt if path in by_path), None)
    if not any(found):
        times = Counter(same_name(os.path.basename(_portable(name))) for name in names)
        for index, name in enumerate(names):
            key = same_name(os.path.basename(_portable(name)))
            hits = everywhere.get(key, [])
            if len(hits) == 1 and times[key] == 1:
                found[index] = hits[0]
    return found


def _bases(file: Path, root: Path) -> Iterator[str]:
    """Folders in which a JSON's images usually are, the likeliest first."""
    words = [file.stem]
    for word in file.stem.replace("-", "_").replace(".", "_").split("_"):
        if (split := split_of(word)) is not None:
            words += [word, split]
    tops = dict.fromkeys((file.parent, root))
    for top in tops:
        for word in words:
            for folder in _IMAGE_FOLDERS:
                yield os.path.join(top, folder, word)
                yield os.path.join(top, word, folder)
            yield os.path.join(top, word)
    for top in tops:
        yield os.path.join(top)
        for folder in _IMAGE_FOLDERS:
            yield os.path.join(top, folder)


def _portable(name: str) -> str:
    r"""A path written on Windows (`images\1.jpg`) as one that is read everywhere."""
    return name.replace("\\", "/")


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _number(value: Any) -> float:
    """A number, also one written as text; NaN for anything else."""
    if isinstance(value, float):
        return value
    try:
        return float(value) if isinstance(value, int | float | str) else _NAN
    except (ValueError, OverflowError):
        return _NAN


def _key(value: Any) -> int | str | None:
    """An image's id: a whole number where it can be read as one, else a text; else None."""
    number = _whole(value)
    return value if number is None and isinstance(value, str) else number


def _whole(value: Any) -> int | None:
    """A whole number that fits 64 bits, also one written as text; None for anything else."""
    if not isinstance(value, int):
        number = _number(value)
        if not math.isfinite(number) or number != int(number):
            return None
        value = int(number)
    return int(value) if -(2**63) <= value < 2**63 else None
