"""Where the images, labels and class names of a YOLO data set are, by its YAML or its folders."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mobilevit.data.formats.base import (
    IMAGE_FOLDERS,
    Draft,
    FileError,
    files_below,
    read_text,
    same_name,
    split_of,
    split_of_path,
)
from mobilevit.data.formats.folders import has_image_extension, join_names

SPLITS = ("train", "val", "valid", "validation", "test")
_NAME_FILES = frozenset(
    ("classes.txt", "names.txt", "labels.txt", "predefined_classes.txt", "_darknet.labels")
)


@dataclass
class Plan:
    """Where images are and what classes are called."""

    names: dict[int, str] | None = None
    """None where nothing names them."""
    extra: int = 0
    """Numbers that may follow a box on its line: those of key points."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Name -> images; empty where none is named."""
    images: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Images that are not there -> file and line that name them."""
    labels: list[str] = field(default_factory=list)
    """Files that may be labels."""
    unused: list[str] = field(default_factory=list)
    """What is left out, and why."""

    @cached_property
    def places(self) -> dict[int, int] | None:
        """Class number -> place in `names`."""
        return None if self.names is None else {n: place for place, n in enumerate(self.names)}


def from_folder(root: Path, draft: Draft) -> Plan:
    """What the files of a folder say."""
    images, others = files_below(root)
    plan = Plan(images=images)
    lists: set[str] = set()
    stated: dict[tuple[str, ...], str] = {}
    for path in others:
        try:
            if _is_name_file(path):
                lines = read_text(Path(path)).rstrip().splitlines()
                stated[tuple(line.strip() for line in lines)] = path
            elif (split := split_of(_stem(path))) and _is_list(Path(path)):
                lists.add(path)
                bases = [Path(path).parent, root]
                listed = _listed_images(Path(path), bases, split, plan, draft)
                plan.splits.setdefault(split, []).extend(listed)
        except FileError as error:
            draft.fault(error.where, error.what, skippable=False)
    plan.labels = [path for path in others if is_label(path) and path not in lists]
    if len(stated) > 1:
        what = f"class names differ: {', '.join(stated.values())}; keep one"
        draft.fault(root, what, skippable=False)
    for names, path in stated.items():
        plan.names = _checked(dict(enumerate(names)), path, draft)
    # Beside a folder of images there may be one of masks, or of drawn results.
    if inside := [path for path in images if _is_in_image_folder(path, root)]:
        left = set(images).difference(inside)
        plan.unused += [f"{path}: in no folder of images, as others are" for path in sorted(left)]
        images = inside
    for path in () if plan.splits else images:
        if (split := split_of_path(path, root)) is not None:
            plan.splits.setdefault(split, []).append(path)
    plan.images = [*images, *(path for paths in plan.splits.values() for path in paths)]
    return plan


def _is_in_image_folder(path: str, root: Path) -> bool:
    folders = Path(path).relative_to(root).parts[:-1]
    return any(same_name(folder) in IMAGE_FOLDERS for folder in folders)


def _is_name_file(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name in _NAME_FILES or name.endswith(".names")


def is_label(path: str) -> bool:
    """Whether a file may hold an image's labels, by its name."""
    name = os.path.basename(path).lower()
    return name.endswith(".txt") and not _is_name_file(path) and not name.startswith("readme")


def _is_list(file: Path) -> bool:
    """Whether a file is text whose first line names an image."""
    if file.suffix.lower() != ".txt":
        return False
    return has_image_extension(read_text(file).split("\n", 1)[0].strip())


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def from_yaml(file: Path, draft: Draft) -> Plan:
    """What a `data.yaml` says; without splits, they are those of its folder."""
    content = _load_yaml(file, draft)
    entries = {split: _listing(content.get(split)) for split in SPLITS}
    if not any(entries.values()):
        plan = from_folder(file.parent, draft)
    else:
        plan = Plan()
        bases = [file.parent]
        if stated := _listing(content.get("path")):
            # What is not there is a path on another machine, or below a tool's own folder.
            bases = [base for base in (_locate(stated[0], bases),) if base] + bases
        for split, named in entries.items():
            if named:
                _add_split(split, named, bases, file, plan, draft)
        folders = {os.path.dirname(path) for path in plan.images}
        for top in _outermost(_top(Path(folder), bases) for folder in folders):
            plan.labels += filter(is_label, files_below(top)[1])
    plan.names = _names(content, file, draft) or plan.names
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and all(isinstance(n, str) and n.isdigit() for n in shape):
        plan.extra = math.prod(map(int, shape))
    return plan


def _load_yaml(file: Path, draft: Draft) -> dict[str, Any]:
    """A YAML file's mapping; what is wrong with it becomes a fault."""
    try:
        # All values as text: YAML would make a truth value of a class called `no`.
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except FileError as error:
        draft.fault(error.where, error.what, skippable=False)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = str(file) if mark is None else f"{file}:{mark.line + 1}"
        draft.fault(where, f"not YAML: {getattr(error, 'problem', error)}", skippable=False)
    else:
        if isinstance(content, dict):
            return content
        draft.fault(file, "not a mapping with names, train and val", skippable=False)
    return {}


def _listing(value: Any) -> list[str]:
    """One path, several or none -> a list."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and v not in ("", "null", "~", "None")]


def _names(content: Mapping[str, Any], file: Path, draft: Draft) -> dict[int, str] | None:
    """Number -> name, in order of number; None where none are stated."""
    stated = content.get("names")
    if stated is None:
        return None
    pairs = stated.items() if isinstance(stated, dict) else enumerate(stated)
    # Anything but text is refused unread: by YAML's aliases a few lines can nest without end.
    if not isinstance(stated, dict | list) or not all(
        str(number).isdigit() and isinstance(name, str) for number, name in pairs
    ):
        what = "names must be a list, or a mapping from class numbers"
        draft.fault(file, what, skippable=False)
        return None
    pairs = stated.items() if isinstance(stated, dict) else enumerate(stated)
    names = {int(number): name.strip() for number, name in pairs}
    count = content.get("nc")
    if isinstance(count, str) and count != str(len(names)):
        draft.fault(file, f"nc is {count}, but there are {len(names)} names", skippable=False)
    return _checked(dict(sorted(names.items())), file, draft)


def _checked(names: dict[int, str], file: str | Path, draft: Draft) -> dict[int, str]:
    """The same names; that each is there and only once."""
    if twice := [name for name, times in Counter(names.values()).items() if times > 1]:
        draft.fault(file, f"{join_names('class', twice)} stated more than once", skippable=False)
    if not all(names.values()):
        draft.fault(file, "a class without a name", skippable=False)
    return names


def _add_split(
    split: str, named: list[str], bases: list[Path], file: Path, plan: Plan, draft: Draft
) -> None:
    """Find the images of one split of a YAML file."""
    members = plan.splits.setdefault(split, [])
    for entry in named:
        found = _locate(entry, bases)
        if found is None:
            looked = " and ".join(map(str, bases))
            what = f"{split}: {entry} is not there, looked for in {looked}"
            draft.fault(file, what, split=split, skippable=False)
        elif found.is_dir():
            members += files_below(found)[0]
        elif has_image_extension(found.name):
            members.append(str(found))
        else:
            members += _listed_images(found, [found.parent, *bases], split, plan, draft)
    plan.images += members


def _listed_images(
    file: Path, bases: list[Path], split: str, plan: Plan, draft: Draft
) -> Iterator[str]:
    """The images that a text file names, one to a line; those that are not there as well."""
    try:
        lines = read_text(file).splitlines()
    except FileError as error:
        draft.fault(error.where, error.what, split=split, skippable=False)
        return
    for number, line in enumerate(lines, start=1):
        if line := line.strip():
            found = _locate(line, bases)
            path = os.path.join(bases[0], line) if found is None else str(found)
            if found is None:
                plan.missing[path] = f"{file}:{number}"
            yield path


def _locate(name: str, bases: Sequence[Path]) -> Path | None:
    """The file or folder of a name below one of `bases`, or of the longest end of it."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    for base, end in [(base, name) for base in bases] + [(b, end) for end in ends for b in bases]:
        if (found := base / end).exists():
            return Path(os.path.normpath(found)) if ".." in found.parts else found
    return None


def _top(folder: Path, bases: Sequence[Path]) -> Path:
    """The folder to look for labels in: above `images`, or else what the images' folder is in."""
    inside = any(folder.is_relative_to(base) for base in bases)
    for above in (folder, *folder.parents)[: None if inside else 4]:
        if above == bases[-1]:  # never above the data set
            break
        if same_name(above.name) in IMAGE_FOLDERS:
            return above.parent
        if above in bases:
            break
    return folder if folder in bases else folder.parent


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Folders without those that lie in others."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):  # one that holds others goes before them
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return kept
