"""Samples of any task, and how the splits of a data set are found or made."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import EVERYTHING, Content, Issue, ParsedDataset
from mobilevit.data.formats.files import VAL_SPLITS, file_size, join_names, normalize_name
from mobilevit.data.images import ImageFacts
from mobilevit.data.sampler import EpochOrder, Order

SPLITS = "splits that do not fit together"

_SPLIT_ORDER = ("train", "trainval", *VAL_SPLITS)


@dataclass(frozen=True)
class Examination:
    """What an examination of one sample found, beyond its image file."""

    issues: Sequence[Issue] = ()
    counts: Mapping[int | str, int] = field(default_factory=dict)
    """Class, or anything else that the task counts -> how often."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A selection of a parsed data set's images; each task derives its own class."""

    dataset: ParsedDataset
    indices: np.ndarray
    """int64 [samples]: indices of images in the data set."""
    classes: tuple[str, ...]
    class_map: np.ndarray
    """int64 [classes of the data set]: their indices in `classes`; -1 for those not in it."""

    content: ClassVar[Content]
    unit: ClassVar[str]
    """What `counts` counts: images, boxes or pixels."""
    extra_counts: ClassVar[tuple[str, ...]] = ()
    """What `examine` counts besides classes."""

    @classmethod
    def from_dataset(cls, dataset: ParsedDataset, images: Sequence[int] | None = None) -> Self:
        images = range(len(dataset.images)) if images is None else images
        count = len(dataset.classes)
        return cls(dataset, np.array(images, np.int64), dataset.classes, np.arange(count))

    def __len__(self) -> int:
        return len(self.indices)

    def source(self, index: int) -> Path | bytes | Image.Image:
        return self.dataset.images[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.dataset.images.name(int(self.indices[index]))

    def targets(self, indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Any:
        """What predictions for samples, of images of (height, width), are compared with."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # frozen; the copy of a module that holds samples needs no others

    def names(self) -> set[str]:
        return set(map(self.name, range(len(self))))

    @property
    def root(self) -> Path:
        return self.dataset.root

    @property
    def location(self) -> str:
        """The root in messages."""
        return str(self.root)

    def subset(self, indices: Iterable[int]) -> Self:
        return replace(self, indices=self.indices[np.array(list(indices), np.int64)])

    def used_classes(self) -> list[str]:
        """The classes that occur, as far as annotations tell; masks are not read."""
        return list(self.classes)

    def relabel(self, classes: Sequence[str]) -> Self:
        """The same samples with labels that index `classes` (such as a model's) by name."""
        index = {name: position for position, name in enumerate(classes)}
        if len(index) != len(classes):
            raise DataError(f"class names must be unique: {', '.join(classes)}")
        if unknown := [name for name in self.used_classes() if name not in index]:
            names, known = join_names("class", unknown), ", ".join(classes)
            raise DataError(f"{self.location}: unknown {names}; known are: {known}")
        moved = np.array([*(index.get(name, -1) for name in self.classes), -1], np.int64)
        return replace(self, classes=tuple(classes), class_map=moved[self.class_map])

    def contents(self) -> Iterator[tuple[str, str]]:
        """Each sample's path below the root; the size of its file, and its annotation in short.

        Neither images nor masks are read: a change that leaves a file's size does not show.
        """
        dataset = self.dataset
        for index, image in enumerate(self.indices.tolist()):
            annotation = ""
            if dataset.labels is not None:
                annotation = dataset.classes[int(dataset.labels[image])]
            elif dataset.boxes is not None:
                annotation = dataset.boxes.digest(image)
            elif dataset.masks is not None:
                annotation = dataset.masks.digest(image)
            size = file_size(self.name(index))
            yield _path_below(self, index), f"{size:,} bytes, {annotation}"

    def order(self, *, seed: int, pool: int = 0, rank: int = 0, world_size: int = 1) -> Order:
        """The order in which training sees the samples; `pool` is that of `ShardOrder`."""
        return EpochOrder(len(self), seed=seed, rank=rank, world_size=world_size)

    def strata(self) -> list[list[int]]:
        """Groups of samples; a share of each is held out."""
        return [list(range(len(self)))]

    def classes_in(self, index: int) -> set[int]:
        """Classes of the sample that training must not lose."""
        return set()

    def hold_out(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide the samples into those to train on and those to evaluate on.

        Of each of the `strata`, `fraction` is held out: rounded, at least one and not all. The
        choice depends only on `seed` and the images' paths below the root, so most samples stay
        where they are when images are added. The last sample with a class in `classes_in` stays in
        training.

        Raises:
            DataError: none can be held out.
        """
        classes_in = [self.classes_in(index) for index in range(len(self))]
        left = [0] * len(self.classes)  # training samples with each class
        for labels in classes_in:
            for label in labels:
                left[label] += 1
        held_out: set[int] = set()
        for group in self.strata():
            wanted = min(max(round(len(group) * fraction), 1), len(group) - 1)
            # Ranked by a hash rather than shuffled: a shuffle moves every file when one is added.
            for index in sorted(group, key=lambda index: _hash_rank(self, index, seed)):
                if wanted <= 0:
                    break
                if all(left[label] > 1 for label in classes_in[index]):
                    held_out.add(index)
                    wanted -= 1
                    for label in classes_in[index]:
                        left[label] -= 1
        if not held_out:
            raise DataError(
                f"{self.location}: {len(self)} images are too few to hold one out: each is the "
                "only one, or the only one of its class"
            )
        train = [index for index in range(len(self)) if index not in held_out]
        return self.subset(train), self.subset(sorted(held_out))

    def describe_held_out(self, val: Self, fraction: float) -> str:
        """What `hold_out` chose, in words."""
        of_each = " of each class" if len(self.strata()) > 1 else ""
        return f"{fraction:.0%} of the images{of_each}"

    def examine(
        self, index: int, facts: ImageFacts | None, *, decode: bool = False, count: bool = True
    ) -> Examination:
        """Check a sample beyond its image file.

        Args:
            facts: of its image; None where that cannot be read.
            decode: read everything, not just headers.
            count: also count, and warn of what is only unusual.
        """
        return Examination()

    def agree(self, first: int, second: int) -> bool:
        """Whether two samples of equal images have the same annotations, as far as is compared."""
        return True

    def check_split(self, split: str) -> list[Issue]:
        """Issues that keep the samples of a split from being used at all."""
        if len(self):
            return self.check_files()
        return [Issue(SPLITS, self.location, f"no images in {split}", skippable=False)]

    def check_files(self) -> list[Issue]:
        """Issues of files that hold many samples each."""
        return []

    def check_classes(self) -> list[Issue]:
        """Issues of the classes that keep the samples from being trained on."""
        return []

    def where_class(self, name: str) -> str:
        return self.location

    def compare(self, val: Self) -> list[str]:
        """Notes on how these samples differ from those to evaluate on."""
        return []


@dataclass(frozen=True, eq=False)
class LabelSamples(Samples):
    """Images with one class each."""

    content = "labels"
    unit = "images"

    @cached_property
    def labels(self) -> Any:
        """int64 [samples]: indices of classes."""
        assert self.dataset.labels is not None
        return self.class_map[self.dataset.labels[self.indices]]

    def targets(self, indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Labels `[B]`."""
        return torch.tensor([int(self.labels[index]) for index in indices])

    def used_classes(self) -> list[str]:
        return [self.classes[label] for label in np.unique(self.labels).tolist()]

    def strata(self) -> list[list[int]]:
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.classes)))
        return [group.tolist() for group in np.split(order, ends[:-1])]

    def agree(self, first: int, second: int) -> bool:
        return bool(self.labels[first] == self.labels[second])

    def check_classes(self) -> list[Issue]:
        classes = self.used_classes()
        if len(classes) != 1:
            return []
        message = f"all {len(self)} images are of one class, {classes[0]}; training needs two"
        return [Issue(SPLITS, self.location, message, skippable=False)]

    def where_class(self, name: str) -> str:
        label = self.classes.index(name)
        file = Path(self.name(int(np.flatnonzero(self.labels == label)[0])))
        return str(next((folder for folder in file.parents if folder.name == name), self.location))

    def compare(self, val: Self) -> list[str]:
        missing = sorted({*self.used_classes()} - {*val.used_classes()})
        return [f"without images in val: {', '.join(missing)}"] if missing else []

    def examine(
        self, index: int, facts: ImageFacts | None, *, decode: bool = False, count: bool = True
    ) -> Examination:
        return Examination(counts={int(self.labels[index]): 1})


S = TypeVar("S", bound=Samples)
A = TypeVar("A")


@dataclass(frozen=True)
class Splits(Generic[A]):
    """Samples to train on and to evaluate on, with the same classes."""

    train: A
    val: A
    note: str
    """How the two were found or made, for messages."""


@dataclass(frozen=True)
class Division(Generic[S]):
    """The splits of a data set as training uses them, and the issues that prevent that."""

    splits: dict[str, S]
    """All splits, by their names in the data set, or the two that were made."""
    train: str | None
    """The split to train on; None where there are issues."""
    val: str | None
    issues: list[Issue]
    note: str


def split_datasets(samples_type: type[S], datasets: Sequence[ParsedDataset]) -> dict[str, S]:
    """Split -> its samples, in the usual order; `EVERYTHING` -> all where no splits are stated."""
    found = {
        split: samples_type.from_dataset(dataset, images)
        for dataset in datasets
        for split, images in dataset.parts.items()
    }
    usual = [name for name in _SPLIT_ORDER if name in found]
    return {name: found[name] for name in dict.fromkeys([*usual, *found])}


def divide(parts: Mapping[str, S], *, val_fraction: float, seed: int) -> Division[S]:
    """Find, or make, the samples to train on and those to evaluate on.

    Training uses `train`, else `trainval`, and evaluation the first of `VAL_SPLITS`. Without one,
    `val_fraction` of the images is held out; see `Samples.hold_out`. Classes are those of `train`,
    and matched by name. What does not fit is returned as issues.
    """
    name = next((name for name in ("train", "trainval", EVERYTHING) if name in parts), None)
    if name is None:
        root = next(iter(parts.values())).location
        message = f"has {join_names('split', list(parts))} but nothing to train on"
        issue = Issue(SPLITS, root, message, skippable=False)
        return Division(dict(parts), None, None, [issue], message)
    train = parts[name]
    if train.dataset.classes_by_use:
        train = train.relabel(train.used_classes())
    # VOC's trainval contains its train and val.
    overlapping = {"train", "val", "valid", "validation"} if name == "trainval" else {"trainval"}
    others = [split for split in parts if split not in (name, *overlapping)]
    val_name = next((split for split in VAL_SPLITS if split in others), None)
    if val_name is None:
        return _divide_one(train, name, val_fraction=val_fraction, seed=seed)
    splits = {name: train}
    repeated = len(set(train.classes)) < len(train.classes)  # which readers report
    for split in others:
        unknown = set(parts[split].used_classes()).difference(train.classes)
        fits = not unknown and not repeated
        splits[split] = parts[split].relabel(train.classes) if fits else parts[split]
    val = splits[val_name]
    issues = [*train.check_split(name), *train.check_classes(), *val.check_split(val_name)]
    if unknown := set(val.used_classes()).difference(train.classes):
        names = sorted(unknown)
        message = (
            f"{join_names('class', names)} in val but not in train; classes are matched by name"
        )
        where = val.where_class(names[0])
        issues.append(Issue(SPLITS, where, message, split=val_name, skippable=False))
    found = (
        f"{role}: {samples.dataset.origins.get(split, split)} ({len(samples)} images)"
        for role, split, samples in (("train", name, train), ("val", val_name, val))
    )
    note = ", ".join(found)
    if shared := len(train.names() & val.names()):
        note += f", of which {shared} are in train, too"
    return Division(splits, name, val_name, issues, _join_notes(train, note, *train.compare(val)))


def _divide_one(samples: S, name: str, *, val_fraction: float, seed: int) -> Division[S]:
    issues = samples.check_split(name or "the data set") + samples.check_classes()
    try:
        train, val = samples.hold_out(val_fraction, seed)
    except DataError as error:
        message = str(error).removeprefix(f"{samples.location}: ")
        issues = issues or [Issue(SPLITS, samples.location, message, skippable=False)]
        return Division({name or "all": samples}, None, None, issues, _join_notes(samples, message))
    what = f"has only {name}" if name else "has no train and val splits"
    note = (
        f"{samples.location} {what}: {samples.describe_held_out(val, val_fraction)} held out with "
        f"seed {seed} ({len(train)} + {len(val)} images)"
    )
    notes = _join_notes(samples, note, *train.compare(val))
    return Division({"train": train, "val": val}, "train", "val", issues, notes)


def select_evaluation_split(parts: Mapping[str, S], split: str | None = None) -> tuple[str, S]:
    """The split to evaluate on: `split`, else the first of `VAL_SPLITS`, else the first of all.

    Raises:
        DataError: there is no such split.
    """
    if split is None:
        name = next((name for name in VAL_SPLITS if name in parts), next(iter(parts)))
    else:
        name = find_named_split(parts, split, next(iter(parts.values())).location)
    return name, parts[name]


def find_named_split(names: Iterable[str], split: str, location: str) -> str:
    """The one of a data set's splits that is meant by `split`; DataError if there is none."""
    stated = [name for name in names if name != EVERYTHING]
    for name in stated:
        if normalize_name(name) == normalize_name(split):
            return name
    available = f"only {', '.join(stated)}" if stated else "it states no splits"
    raise DataError(f"{location}: has no split {split!r}, {available}")


def _hash_rank(samples: Samples, index: int, seed: int) -> bytes:
    name = _path_below(samples, index)
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _path_below(samples: Samples, index: int) -> str:
    """A sample's path below the root, the same on any system."""
    path = Path(samples.name(index))
    inside = path.is_relative_to(samples.root)
    name = path.relative_to(samples.root if inside else path.anchor).as_posix()
    return unicodedata.normalize("NFC", name)


def _join_notes(samples: Samples, *notes: str) -> str:
    return f"{samples.dataset.display_name}: {'; '.join([*notes, *samples.dataset.notes])}"
