"""Files of a data set: listing, matching by name, and compact lists of paths."""

import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.image_formats import image_extensions

IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "jpegimages", "photos", "leftimg8bit"])
"""Lower-case names of folders that hold images and name no split."""
MASK_FOLDERS = frozenset([
    "masks", "mask", "labels", "label", "annotations", "annotation",
    "segmentationclass", "semantic_masks", "segmentations", "gtfine",
])  # fmt: skip
"""Lower-case names of folders that may hold masks and name no split."""
_ANNOTATION_FOLDERS = MASK_FOLDERS | {"anns", "ann", "xml", "xmls", "txt", "bboxes"}

VAL_SPLITS = ("val", "valid", "validation", "test", "holdout")
"""Splits to evaluate on; the first one found is used."""
_SPLIT_NAMES = {
    **{name: name for name in ("train", "trainval", *VAL_SPLITS)},
    "training": "train",
    "testing": "test",
}
# Left behind by operating systems and archives. Names that begin with a dot are hidden as well.
_JUNK = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})


class Paths:
    """File paths in one array of bytes; a `Path` is created on access.

    A million `Path` objects take hundreds of megabytes, and each worker process copies them,
    because counting references writes to every object.

    >>> Paths(["photos/cat/1.jpg", "photos/dog/2.jpg"])[1].name
    '2.jpg'
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._names = np.array([os.fsencode(path) for path in paths], np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return Path(self.name(index))

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index])


class FileTree:
    """A data set's folder, or its one file; the images below the folder, and other files."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if ".." in self.root.parts:  # so that equal files have equal paths
            self.root = self.root.resolve()
        if not self.root.exists():
            raise DataError(f"{self.root}: no such file or folder")
        is_file = self.root.is_file()
        self.folder = self.root.parent if is_file else self.root
        self.images, others = list_files(self.folder)
        self.others = [str(self.root)] if is_file else others

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


def list_files(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Images (by extension) and other files at any depth, sorted, without system leftovers.

    Links are followed, each folder once, and under its own name if it has one below `folder`.
    """
    images: list[str] = []
    others: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = deque([os.fspath(folder)])
    while waiting:
        current = waiting.popleft()
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in visible_entries(current):
            if is_folder(entry):
                (waiting.append if entry.is_symlink() else waiting.appendleft)(entry.path)
            else:
                # Written as pathlib does, without a leading ./
                is_image = has_image_extension(entry.name) and (
                    entry.is_file() or entry.is_symlink()
                )
                (images if is_image else others).append(entry.path.removeprefix("./"))
    return sorted(images), sorted(others)


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
    return os.path.splitext(name)[1].lower() in image_extensions()


def find_split(name: str, *, within: bool = False) -> str | None:
    """The split that a folder or list is named after: `train`, `Train2017`, `valid`.

    With `within`, the name may have other words before and behind it: `seg_train`, `TestImages`.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.casefold())
    found = {_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES}
    alone = len(words) == 1 or name.casefold().startswith("obj_")  # obj_train_data: darknet's tools
    return found.pop() if len(found) == 1 and (within or alone) else None


def find_split_of(file: Path, root: Path) -> str | None:
    """The split in an annotation file's name, else that of its innermost folder named after one."""
    names = [file.stem, *reversed(file.relative_to(root).parent.parts)]
    splits = (find_split(name, within=True) for name in names)
    return next((split for split in splits if split is not None), None)


@lru_cache
def find_split_of_folder(folder: str, root: Path, *, within: bool = False) -> str | None:
    """The split that the first such folder of a path below `root` is named after."""
    below = os.path.relpath(folder, root).split(os.sep)
    splits = (find_split(name, within=within) for name in below)
    return next((split for split in splits if split is not None), None)


def find_splits(paths: Sequence[str], root: Path) -> list[str | None]:
    """The split of each path below `root`, by folders named after splits.

    Names with further words count only where no other folder names a split, and one of them names
    `train`: a folder `test_tubes` alone is not a split.
    """
    folders = list(map(os.path.dirname, paths))
    splits = [find_split_of_folder(folder, root) for folder in folders]
    if any(splits):
        return splits
    splits = [find_split_of_folder(folder, root, within=True) for folder in folders]
    return splits if "train" in splits else [None] * len(paths)


def normalize_name(text: str) -> str:
    """Text for comparing names: case and the encoding of accents do not matter."""
    return unicodedata.normalize("NFC", text).casefold()


def relative_paths(paths: Iterable[str], folder: Path) -> Iterator[tuple[str, str]]:
    """The paths that lie below a folder, as they are and relative to it."""
    prefix = os.path.join(folder, "").removeprefix("./")
    for path in paths:
        if path.startswith(prefix):
            yield path, path[len(prefix) :]


def folder_names(path: str | Path, root: Path) -> set[str]:
    """The names of a file's folders below `root`, for comparison."""
    return set(map(normalize_name, Path(path).relative_to(root).parts[:-1]))


def match_files(
    files: Sequence[str], candidates: Sequence[str], suffixes: Sequence[str] = ()
) -> list[list[str]]:
    """For each file, the candidates with the same name apart from the extension.

    Their folders must be equal too, apart from folders such as `images`, `labels` or `Annotations`:
    `images/train/1.jpg` belongs to `labels/train/1.txt`, `train/images/1.jpg` to
    `train/labels/1.txt`. If no file at all has a match, folders are ignored, and names that occur
    once on either side are matched. Names of candidates may also end in one of `suffixes`.
    """
    places, keys = [_place(file) for file in files], [_place(path) for path in candidates]
    matches = _match(places, keys, candidates, suffixes)
    if any(matches):
        return matches
    places, keys = [[place[-1]] for place in places], [[key[-1]] for key in keys]
    matches = _match(places, keys, candidates, suffixes)
    counts = Counter(place[-1] for place in places)
    return [
        match if len(match) == 1 and counts[place[-1]] == 1 else []
        for match, place in zip(matches, places, strict=True)
    ]


def _match(
    places: list[list[str]],
    keys: list[list[str]],
    candidates: Sequence[str],
    suffixes: Sequence[str],
) -> list[list[str]]:
    index: dict[str, list[str]] = {"/".join(place): [] for place in places}
    for key, candidate in zip(map("/".join, keys), candidates, strict=True):
        spellings = (key, *(key.removesuffix(end) for end in suffixes if key.endswith(end)))
        if (match := next((key for key in spellings if key in index), None)) is not None:
            index[match].append(candidate)
    return [index["/".join(place)] for place in places]


def find_files(
    names: Sequence[str],
    files: Iterable[str],
    bases: Sequence[Path],
    *,
    root: Path,
    split: str | None = None,
) -> list[str | None]:
    """Find the files that annotations name, wherever they were when these were written.

    A name is a path below one of `bases`, or the end of the path of one of `files`, which are those
    below `root`. Of several, files outside folders of labels or masks are preferred, then those of
    `split`, then those near `bases[0]`. If no name at all is found so, names that occur once are
    searched for without their folders, in all splits.

    Returns:
        For each name a file; None where there is none, or several are as likely.
    """
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(normalize_name(os.path.basename(file)), []).append(file)

    def split_of(file: str) -> str | None:
        return find_split_of_folder(os.path.dirname(file), root)

    def rank(file: str) -> tuple[bool, bool, int]:
        return (
            folder_names(file, root).isdisjoint(_ANNOTATION_FOLDERS),
            split_of(file) == split,
            len(os.path.commonpath([file, bases[0]])),
        )

    def best(candidates: list[str]) -> str | None:
        ranks = sorted(((rank(file), file) for file in candidates), reverse=True)
        tied = len(ranks) > 1 and ranks[0][0] == ranks[1][0]
        return ranks[0][1] if ranks and not tied else None

    def find(name: str) -> str | None:
        for path in (os.path.join(base, name) for base in bases):
            if os.path.isfile(path):
                return os.path.normpath(path) if ".." in path else path
        end = _place(name, extension=True)
        named = by_name.get(end[-1], [])
        named = [f for f in named if _place(f, extension=True)[-len(end) :] == end]
        return best([f for f in named if not _other_split(split_of(f), split)])

    names = [name.replace("\\", "/") for name in names]
    found = [find(name) for name in names]
    if any(found):
        return found
    bare = [normalize_name(os.path.basename(name)) for name in names]
    counts = Counter(bare)
    return [best(by_name.get(name, [])) if counts[name] == 1 else None for name in bare]


def _other_split(first: str | None, second: str | None) -> bool:
    """Whether two splits have different images."""
    groups = {"valid": "val", "validation": "val"}
    both = {groups.get(split, split) for split in (first, second) if split is not None}
    return len(both - {"trainval"}) > 1


def _place(path: str, *, extension: bool = False) -> list[str]:
    """The parts of a path that related files share: without folders of a type, for comparison."""
    folder, name = os.path.split(normalize_name(path).replace(os.sep, "/"))
    if not extension:
        name = os.path.splitext(name)[0].removesuffix("_leftimg8bit")
    typed = IMAGE_FOLDERS | _ANNOTATION_FOLDERS | {".", ""}
    return [part for part in folder.split("/") if part not in typed] + [name]


def find_images(
    files: Sequence[str], names: Sequence[str], images: Sequence[str]
) -> list[str | None]:
    """The image of each annotation file: of the same name, else the one that the file names."""
    stated = [
        os.path.join(os.path.dirname(file), os.path.basename(name.replace("\\", "/")))
        for file, name in zip(files, names, strict=True)
    ]
    found: list[str | None] = []
    pairs = zip(match_files(files, images), match_files(stated, images), stated, strict=True)
    for by_stem, by_name, name in pairs:
        matches = by_stem or by_name
        # Of 1.jpg and 1.png, prefer the stated one.
        base = normalize_name(os.path.basename(name))
        exact = (one for one in matches if normalize_name(os.path.basename(one)) == base)
        found.append(next(exact, matches[0] if matches else None))
    return found


def file_size(path: str | Path) -> int:
    """The size of a file in bytes; 0 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def join_names(noun: str, names: Sequence[str]) -> str:
    """Join names behind their noun: `class "a"`, `classes "a", "b"`."""
    plural = noun if len(names) == 1 else noun + ("es" if noun.endswith("s") else "s")
    return f"{plural} " + ", ".join(f'"{name}"' for name in names)
