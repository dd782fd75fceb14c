"""A folder with one folder of images per class -> samples, labelled by the name of the class."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from mobilevit.data.images import IMAGE_EXTENSIONS
from mobilevit.data.paths import Paths

TRAIN_FOLDER = "train"
VAL_FOLDERS = ("val", "valid", "validation", "test")
"""Names of the folder that is held out beside `train`, the first one found being used."""

# What operating systems and archives leave behind; names with a leading dot are hidden as well.
_JUNK = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})


class DataError(ValueError):
    """A data set that cannot be used as it lies there; the message names the folder."""


@dataclass(frozen=True)
class Split:
    """Labelled image files: those to train on, or those held out."""

    root: Path
    classes: tuple[str, ...]
    """Names of the classes; sorted, unless the caller of `relabel` gave another order."""
    paths: Sequence[Path]
    """The image files, class after class, in an order that does not depend on the file system. Kept
    as `Paths`, whatever is given."""
    labels: tuple[int, ...]
    """For each path the index of its class in `classes`."""
    ignored: tuple[Path, ...] = ()
    """Visible files that are no samples: no image extension, or in no class folder."""
    empty: tuple[str, ...] = ()
    """Class folders without any image; they are no classes."""

    def __post_init__(self) -> None:
        """Keep the paths in little memory."""
        if not isinstance(self.paths, Paths):
            object.__setattr__(self, "paths", Paths(self.paths, root=self.root))

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.paths)

    def counts(self) -> dict[str, int]:
        """Images of each class, in the order of `classes`; 0 where it has none."""
        totals = [0] * len(self.classes)
        for label in self.labels:
            totals[label] += 1
        return dict(zip(self.classes, totals, strict=True))


@dataclass(frozen=True)
class TrainVal:
    """What to train on and what to evaluate by, with the same classes and labels."""

    train: Split
    val: Split
    note: str
    """How the two came about, for people to read."""


def scan(root: str | os.PathLike[str]) -> Split:
    """List the images of a folder that has one folder per class.

    The images of a class may lie in folders within its folder. Hidden files and what operating
    systems leave behind are passed over; links are followed, each folder once per class. The
    order does not depend on the file system. Files are not opened.

    Raises:
        DataError: `root` is missing, no folder, not readable, or has no image in a class folder.
    """
    root = Path(root)
    _require_folder(root)
    files: dict[str, list[str]] = {}
    ignored: list[str] = []
    loose_images = 0
    above = _identity(str(root))  # a link back to it would make every class part of this one
    for entry in visible_entries(root):
        if is_folder(entry):
            # A name may be stored composed or decomposed (é as one or two characters), depending
            # on the system that wrote it; it is the same class.
            name = unicodedata.normalize("NFC", entry.name)
            files.setdefault(name, []).extend(walk_images(entry.path, above, ignored))
        else:
            loose_images += has_image_extension(entry.name)
            ignored.append(entry.path)
    classes = tuple(sorted(name for name, paths in files.items() if paths))
    if not classes:
        raise DataError(f"{root}: {_why_no_classes(files, loose_images)}")
    return Split(
        root=root,
        classes=classes,
        paths=Paths((path for name in classes for path in files[name]), root=root),
        labels=tuple(label for label, name in enumerate(classes) for _ in files[name]),
        ignored=tuple(map(Path, ignored)),
        empty=tuple(sorted(name for name, paths in files.items() if not paths)),
    )


def splits(root: str | os.PathLike[str], *, val_fraction: float = 0.2, seed: int = 0) -> TrainVal:
    """Find, or make, the images to train on and those to evaluate by.

    Where `root` has a folder `train` and one of `val`, `valid`, `validation`, `test` (the first of
    these is used; capitals do not matter), they are taken as they are. Otherwise `root` holds the
    class folders, and of each class `val_fraction` is held out: rounded, at least one image and
    not all; a class with one image is trained on. Which ones depends on nothing but `seed` and
    the file's class and path within it, so a file stays where it is when classes are added, and
    most do when images are.

    Raises:
        DataError: as in `scan`; the held out folder has a class that `train` lacks; or there would
            be nothing to evaluate by.
        ValueError: `val_fraction` is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
    root = Path(root)
    folders = _split_folders(root)
    if folders is None:
        return hold_out(scan(root), val_fraction=val_fraction, seed=seed)
    train, val = scan(folders[0]), scan(folders[1])
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise DataError(
            f"{val.root / unknown[0]}: {join_names('class', unknown)} in {val.root} but not in "
            f"{train.root}; classes are matched by folder name"
        )
    note = f"train: {train.root} ({len(train)} images), val: {val.root} ({len(val)} images)"
    if missing := sorted(set(train.classes) - set(val.classes)):
        note += f"; without images in val: {', '.join(missing)}"
    return TrainVal(train, relabel(val, train.classes), note)


def evaluation_split(root: str | os.PathLike[str]) -> Split:
    """Find the images to evaluate on: the held out folder beside `train`, else all of `root`.

    Labels count the classes found there; `relabel` turns them into those of a model.

    Raises:
        DataError: as in `scan`.
    """
    root = Path(root)
    folders = _split_folders(root)
    return scan(root if folders is None else folders[1])


def relabel(split: Split, classes: Sequence[str]) -> Split:
    """Give the same samples with labels that index `classes`, such as a model's own.

    Raises:
        DataError: a class of `split` is not among `classes`, or these are not unique.
    """
    index = {name: position for position, name in enumerate(classes)}
    if len(index) != len(classes):
        raise DataError(f"class names must be unique: {', '.join(classes)}")
    unknown = [name for name in split.classes if name not in index]
    if unknown:
        known = ", ".join(classes)
        raise DataError(f"{split.root}: {join_names('class', unknown)} unknown; known are: {known}")
    labels = tuple(index[split.classes[label]] for label in split.labels)
    return replace(split, classes=tuple(classes), labels=labels)


def hold_out(whole: Split, *, val_fraction: float, seed: int) -> TrainVal:
    """One folder of classes -> two splits; see `splits` for the rule."""
    held_out = [False] * len(whole)
    members: list[list[int]] = [[] for _ in whole.classes]
    for sample, label in enumerate(whole.labels):
        members[label].append(sample)
    for samples in members:
        count = min(max(round(len(samples) * val_fraction), 1), len(samples) - 1)
        # Ranked by a hash rather than shuffled: a shuffle moves every file when one is added.
        ranked = sorted(samples, key=lambda s: hash_order(whole.paths[s], whole.root, seed))
        for sample in ranked[:count]:
            held_out[sample] = True
    if not any(held_out):
        raise DataError(f"{whole.root}: every class has one image only, so none can be held out")
    train = _subset(whole, [not held for held in held_out])
    val = replace(_subset(whole, held_out), ignored=(), empty=())
    note = (
        f"{whole.root} has no {TRAIN_FOLDER} and {VAL_FOLDERS[0]} folders: of each class "
        f"{val_fraction:.0%} held out with seed {seed} ({len(train)} + {len(val)} images)"
    )
    if single := [
        name for name, samples in zip(whole.classes, members, strict=True) if len(samples) == 1
    ]:
        note += f"; only one image, in train: {', '.join(single)}"
    return TrainVal(train, val, note)


def hash_order(path: Path, root: Path, seed: int) -> bytes:
    """A place in an order that only the seed and the path below the root decide."""
    name = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _subset(split: Split, keep: Sequence[bool]) -> Split:
    """The samples for which `keep` holds; classes and labels stay."""
    return replace(
        split,
        paths=Paths(compress(split.paths, keep), root=split.root),
        labels=tuple(compress(split.labels, keep)),
    )


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders to train on and to evaluate by, if `root` has both."""
    _require_folder(root)
    folders = {
        entry.name.lower(): Path(entry.path) for entry in visible_entries(root) if is_folder(entry)
    }
    if TRAIN_FOLDER not in folders:
        return None
    train = folders[TRAIN_FOLDER]
    for name in VAL_FOLDERS:
        if name in folders:
            return train, folders[name]
    # Alone it could be a class (of vehicles), but not where it holds folders instead of images:
    # then every class below it would silently become one.
    entries = list(visible_entries(train))
    holds_images = any(has_image_extension(entry.name) for entry in entries)
    if not holds_images and any(is_folder(entry) for entry in entries):
        raise DataError(
            f"{root}: has {train.name} but none of {', '.join(VAL_FOLDERS)}; add one, or give "
            f"{train} itself to have part of it held out"
        )
    return None


def _require_folder(root: Path) -> None:
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(
            f"{root}: is a file; a folder with one folder of images per class is needed"
        )


def _why_no_classes(folders: dict[str, list[str]], loose_images: int) -> str:
    """What to do about a folder in which no sample was found."""
    if loose_images:
        return (
            f"holds {loose_images} images directly; images must lie in one folder per class, "
            "such as cat/1.jpg and dog/2.jpg"
        )
    if folders:
        return f"no images in its {join_names('folder', sorted(folders))[:200]}"
    return "holds no class folders; one folder of images per class is needed"


def images_below(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images in a folder and the folders in it, passing over what `scan` passes over.

    Raises:
        DataError: a folder cannot be listed.
    """
    return [Path(path) for path in walk_images(os.fspath(folder), None, [])]


def walk_images(folder: str, above: tuple[int, int] | None, ignored: list[str]) -> Iterator[str]:
    """Paths of images, at any depth; `above` is not entered; other files go to `ignored`."""
    seen = {above}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        identity = _identity(current)
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
                ignored.append(entry.path)
        waiting.extend(reversed(subfolders))


def visible_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are neither hidden nor junk, by name."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if e.name not in _JUNK and not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    # For links `entry.is_dir` raises on one that leads to itself; isdir says no.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def has_image_extension(name: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _identity(folder: str) -> tuple[int, int]:
    """What tells a folder apart, by whatever name it is reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def join_names(noun: str, names: Sequence[str]) -> str:
    """`class "a"`, `classes "a", "b"`: the right plural before the names."""
    plural = noun if len(names) == 1 else noun + ("es" if noun.endswith("s") else "s")
    return f"{plural} " + ", ".join(f'"{name}"' for name in names)
