"""YOLO's text files, one for each image, with a line for each box -> images with boxes.

A line is `class cx cy width height`, in shares of the upright image's width and height; or a
polygon, `class x1 y1 x2 y2 x3 y3 ...`, of which the bounding box is taken. An image whose file is
empty or absent has no boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from mobilevit.data.formats.base import Draft, FileError, Reading, pair, read_text, same_name
from mobilevit.data.yolo_layout import SPLITS, Plan, from_folder, from_yaml, is_label

_MOST_CLASSES = 10_000
"""More than this are not made of numbers without names."""
_SEEN_ENOUGH = 100
"""After so many text files of other kinds no labels are expected."""
_FAR_OUT = 0.5
"""A value so far outside 0 to 1 is no share of an image."""


def looks_like_data_yaml(file: Path) -> bool:
    """Whether a file is YAML with class names, or with folders to train on and to evaluate by."""
    try:
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except (FileError, yaml.YAMLError, RecursionError):
        return False
    return isinstance(content, dict) and (
        "names" in content or ("train" in content and not content.keys().isdisjoint(SPLITS[1:]))
    )


def looks_like_labels(images: Sequence[str], others: Sequence[str]) -> bool:
    """Whether among files there are text files of images' names with numbers in them."""
    stems = {same_name(os.path.splitext(os.path.basename(path))[0]) for path in images}
    texts = [
        path
        for path in others
        if is_label(path) and same_name(os.path.splitext(os.path.basename(path))[0]) in stems
    ]
    others_seen = 0
    for path in texts:
        try:
            words = read_text(Path(path)).split()
            if len([float(word) for word in words[:5]]) == 5:
                return True
            others_seen += bool(words)  # an empty one may be of an image without boxes
        except (FileError, ValueError):
            others_seen += 1
        if others_seen == _SEEN_ENOUGH:
            break
    return False


def read_yolo(source: Path) -> Reading:
    """Read a `data.yaml`, or a folder without one.

    In a `data.yaml`, `names` are a list, or a mapping from numbers; `train`, `val` and `test` each
    a folder, a text file of image paths, or a list of these. They are looked for below `path`,
    then below the YAML's own folder; a path that is from another machine, or wrong by a `../`, is
    taken from its longest end that is there.

    A folder without one has its splits in folders called `train`, `val` and so on, or in text files
    of these names that list images. Class names are in `classes.txt`, `obj.names` or the like;
    without any, classes are called by their numbers.

    Raises:
        DataError: a folder cannot be listed.
    """
    draft = Draft(source if source.is_dir() else source.parent, "yolo", relative=True)
    plan = from_folder(source, draft) if source.is_dir() else from_yaml(source, draft)
    images = list(dict.fromkeys(plan.images))
    place = {path: index for index, path in enumerate(images)}
    used, highest = set(), -1
    for image, hits in zip(images, pair(images, plan.labels), strict=True):
        # Beside an image may lie text of other kinds; a folder for labels goes first.
        beside = os.path.dirname(image)
        labels = min(hits, key=lambda path: os.path.dirname(path) == beside, default="")
        index = draft.add_image(image, annotated_by=labels)
        if image in plan.missing:
            draft.fault(plan.missing[image], "image missing: " + image, image=index, missing=True)
        if labels:
            used.add(labels)
            highest = max(highest, _read_labels(labels, index, plan, draft))
    names = plan.names
    if names is None:
        if highest >= _MOST_CLASSES:
            what = f"class number {highest}, and no file of class names"
            draft.fault(draft.root, what, skippable=False)
        names = dict(enumerate(map(str, range(highest + 1 if highest < _MOST_CLASSES else 0))))
    listed = {path for paths in plan.splits.values() for path in paths}
    unused = plan.unused
    unused += [f"{path}: no image belongs to it" for path in plan.labels if path not in used]
    if plan.splits:
        unused += [f"{path}: in no split" for path in images if path not in listed]
    return draft.finish(
        tuple(names.values()),
        tuple(names),
        splits={
            name: [place[path] for path in dict.fromkeys(paths)]
            for name, paths in plan.splits.items()
        },
        unused=unused,
    )


def _read_labels(file: str, image: int, plan: Plan, draft: Draft) -> int:
    """Add the boxes of one file; the highest class number in it."""
    highest = -1
    try:
        lines = read_text(Path(file)).splitlines()
    except FileError as error:
        draft.fault(error.where, error.what, image=image)
        return highest
    for number, line in enumerate(lines, start=1):
        if not (words := line.split()):
            continue
        try:
            label, corners = read_line(words, plan)
        except ValueError as error:
            draft.fault(f"{file}:{number}", str(error), image=image)
            continue
        draft.add_box(image, corners, label, line=number)
        highest = max(highest, label)
    return highest


def read_line(words: list[str], plan: Plan) -> tuple[int, tuple[float, float, float, float]]:
    """A line -> label and corners in shares of the image.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        number, *values = map(float, words)
    except ValueError:
        raise ValueError(f"not numbers: {' '.join(words)!r:.60}") from None
    if not 0 <= number < 2**31 or not number.is_integer():
        raise ValueError(f"starts with {words[0]}, which is no class number")
    if plan.extra and len(values) == 4 + plan.extra:
        values = values[:4]
    if far := [v for v in values if v < -_FAR_OUT or v > 1 + _FAR_OUT]:
        raise ValueError(f"{far[0]:g} is no share of an image's width or height: 0 to 1")
    if len(values) == 4:
        cx, cy, width, height = values
        corners = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    else:
        raise ValueError(
            f"{len(words)} numbers, but a box has 5: class, cx, cy, width, height; and a polygon "
            "7 or more: class, x1, y1, x2, y2, x3, y3 ..."
        )
    if plan.places is None:
        return int(number), corners
    if int(number) not in plan.places:
        raise ValueError(f"class {int(number)}, but there are names for {_numbers(plan.places)}")
    return plan.places[int(number)], corners


def _numbers(places: Iterable[int]) -> str:
    """`0 to 79`, or all of a few."""
    numbers = sorted(places)
    if numbers == list(range(len(numbers))):
        return f"0 to {len(numbers) - 1}"
    return ", ".join(map(str, numbers))
