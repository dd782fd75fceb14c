"""Files of a data set: listing, matching by name, reading text, and compact lists of paths."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from mobilevit.data.errors import DataError, FileError
from mobilevit.data.images import IMAGE_EXTENSIONS

IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "jpegimages", "photos"])
"""Lower-case names of folders that hold images and name no split."""
_TYPE_FOLDERS = IMAGE_FOLDERS | frozenset(
    ["labels", "label", "annotations", "annotation", "anns", "ann", "xml", "xmls", "txt", "bboxes"]
)
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "valid",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Left behind by operating systems and archives. Names that begin with a dot are hidden as well.
_JUNK = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})


class Paths(Sequence[Path]):
    """File paths in one text buffer; a `Path` is created on access.

    A million `Path` objects take hundreds of megabytes, and each worker process copies them,
    because counting references writes to every object.

    >>> paths = Paths(["photos/cat/1.jpg", "photos/dog/2.jpg"], root="photos")
    >>> paths[1].name
    '2.jpg'
    """

    def __init__(self, paths: Iterable[str | Path], *, root: str | Path = "") -> None:
        self._root = os.path.join(root, "") if os.fspath(root) else ""
        text, ends = bytearray(), []
        prefix = os.fsencode(self._root)
        for path in paths:
            name = os.fsencode(path)
            # A null byte, which no path can contain, stands for the root.
            text += b"\0" + name[len(prefix) :] if name.startswith(prefix) else name
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Path(self.name(index))

    def name(self, index: int) -> str:
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        name = self._text[begin : self._ends[index]]
        return self._root + os.fsdecode(name[1:]) if name[:1] == b"\0" else os.fsdecode(name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __repr__(self) -> str:
        return f"<{len(self)} paths below {self._root or os.curdir}>"


class FileTree:
    """A data set's folder, or its one file; the files below it are listed once, on first use."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if ".." in self.root.parts:  # so that equal files have equal paths
            self.root = self.root.resolve()
        if not self.root.exists():
            raise DataError(f"{self.root}: no such file or folder")

    @property
    def folder(self) -> Path:
        """The root, or the folder of a single file."""
        return self.root.parent if self.root.is_file() else self.root

    @cached_property
    def _files(self) -> tuple[list[str], list[str]]:
        return ([], [str(self.root)]) if self.root.is_file() else list_files(self.root)

    @property
    def images(self) -> list[str]:
        return self._files[0]

    @property
    def others(self) -> list[str]:
        return self._files[1]

    def with_extension(self, *extensions: str, depth: int | None = None) -> list[Path]:
        """Other files with one of these extensions, at most `depth` levels below the root."""
        paths = [Path(path) for path in self.others if path.lower().endswith(extensions)]
        if depth is None or self.root.is_file():
            return paths
        return [path for path in paths if len(path.relative_to(self.root).parts) <= depth]

    def contents(self, limit: int = 10) -> str:
        if self.root.is_file():
            return self.root.name
        names = [entry.name + "/" * is_folder(entry) for entry in visible_entries(self.root)]
        more = f" and {len(names) - limit} more" if names[limit:] else ""
        return (", ".join(names[:limit]) or "nothing") + more


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Images (by extension) and other files, at any depth."""
    others: list[str] = []
    images = list(walk_images(os.fspath(folder), None, others))
    # Written as pathlib does, without a leading ./, so that they equal paths joined from parts.
    return [path.removeprefix("./") for path in images], [p.removeprefix("./") for p in others]


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images in a folder and its subfolders, without hidden files and system leftovers."""
    return [Path(path) for path in walk_images(os.fspath(folder), None, [])]


def walk_images(folder: str, excluded: tuple[int, int] | None, others: list[str]) -> Iterator[str]:
    """Yield paths of images at any depth; other files are added to `others`.

    The folder `excluded` is not entered. Links are followed, each folder once. The order does not
    depend on the file system.
    """
    seen = {excluded}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        identity = folder_identity(current)
        if identity in seen:
            continue
        seen.add(identity)
        subfolders = []
        for entry in visible_entries(current):
            if is_folder(entry):
                subfolders.append(entry.path)
            elif has_image_extension(entry.name) and (entry.is_file() or entry.is_symlink()):
                yield entry.path
            else:
                others.append(entry.path)
        waiting.extend(reversed(subfolders))


def list_folders(folder: Path) -> dict[str, Path]:
    """The visible subfolders of a folder, by lower-case name."""
    return {
        entry.name.lower(): Path(entry.path)
        for entry in visible_entries(folder)
        if is_folder(entry)
    }


def visible_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden ones and system leftovers."""
    try:
        with os.scandir(folder) as entries:
            shown = [e for e in entries if e.name not in _JUNK and not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(shown, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    # `entry.is_dir` raises on a link that leads to itself; isdir returns False.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def has_image_extension(name: str) -> bool:
    """Whether a file is named like an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def folder_identity(folder: str) -> tuple[int, int]:
    """Device and inode, which all names of a folder share."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def find_split(name: str) -> str | None:
    """The split that a folder or list is named after: `train`, `Train2017`, `valid`."""
    word = re.sub(r"\d+$", "", name.casefold())
    if match := re.fullmatch(r"obj_(\w+)_data", word):  # darknet's tools
        word = match[1]
    return _SPLIT_NAMES.get(word)


def find_split_in_path(path: str, root: Path) -> str | None:
    """The split that the first such folder of a file below `root` is named after."""
    return _split_of_folder(os.path.dirname(path), root)


@lru_cache
def _split_of_folder(folder: str, root: Path) -> str | None:
    below = os.path.relpath(folder, root).split(os.sep)
    return next((split for split in map(find_split, below) if split is not None), None)


def normalize_name(text: str) -> str:
    """Text for comparing names: case and the encoding of accents do not matter."""
    return unicodedata.normalize("NFC", text).casefold()


def match_files(files: Sequence[str], candidates: Iterable[str]) -> list[list[str]]:
    """For each file, the candidates with the same name apart from the extension.

    Their folders must be equal too, apart from folders such as `images`, `labels` or `Annotations`:
    `images/train/1.jpg` belongs to `labels/train/1.txt`, `train/images/1.jpg` to
    `train/labels/1.txt`. If no file at all has a match, folders are ignored, and names that occur
    once on either side are matched.
    """
    candidates = list(candidates)
    matches = _match(files, candidates, _place_key)
    if any(matches):
        return matches
    counts = Counter(map(_name_key, files))
    matches = _match(files, candidates, _name_key)
    return [
        match if len(match) == 1 and counts[_name_key(file)] == 1 else []
        for file, match in zip(files, matches, strict=True)
    ]


def _match(
    files: Sequence[str], candidates: list[str], key: Callable[[str], str]
) -> list[list[str]]:
    index: dict[str, list[str]] = {}
    for candidate in candidates:
        index.setdefault(key(candidate), []).append(candidate)
    return [index.get(key(file), []) for file in files]


def _place_key(path: str) -> str:
    folder, name = os.path.split(os.path.splitext(path)[0])
    folders = normalize_name(folder).replace(os.sep, "/").split("/")
    return "/".join(
        [part for part in folders if part not in _TYPE_FOLDERS] + [normalize_name(name)]
    )


def _name_key(path: str) -> str:
    return normalize_name(os.path.splitext(os.path.basename(path))[0])


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark; raise `FileError` for others."""
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise FileError(path, f"not a text in UTF-8 (byte {error.start})") from error


def read_bytes(path: Path) -> bytes:
    """Read a file; raise `FileError` if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error


def join_names(noun: str, names: Sequence[str]) -> str:
    """Join names behind their noun: `class "a"`, `classes "a", "b"`."""
    plural = noun if len(names) == 1 else noun + ("es" if noun.endswith("s") else "s")
    return f"{plural} " + ", ".join(f'"{name}"' for name in names)
