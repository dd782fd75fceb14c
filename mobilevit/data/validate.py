"""Validation of a data set: the same for training, which refuses it, and `mobilevit check`."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from mobilevit.data.formats.base import MISSING_IMAGES, Issue, ParsedDataset, Severity
from mobilevit.data.images import ImageError, ImageFacts, image_facts, open_image
from mobilevit.data.splits import Examination, Samples
from mobilevit.utils.devices import available_cores
from mobilevit.utils.progress import progress_bar

Depth: TypeAlias = Literal["annotations", "headers", "decode"]
"""What is read: annotation files only; also headers and ends of images; or all of the images."""

TINY_CLASS = 10
"""Classes with fewer training images are pointed out."""
SMALL_SIDE = 32
"""Images with a side of fewer pixels are pointed out."""
MAX_LISTED = 20
"""How many issues of a category are listed, unless training refuses the data for them."""

UNREADABLE_IMAGES = "images that cannot be read"
REPEATED_IMAGES = "images stated more than once"
SHARED_IMAGES = "images in two splits"
CONFLICTING_LABELS = "images in two classes"
CLASSES = "classes"
IMAGE_FILES = "image files"

_WAITING = 1 << 13  # samples handed out at once
_CHUNK = 16  # samples per task: few enough for smooth progress, enough to make tasks cheap
_DEPTHS = {
    "annotations": "annotations read",
    "headers": "headers and file ends read",
    "decode": "every image decoded",
}


@dataclass(frozen=True)
class SplitSummary:
    """What is in one split."""

    images: int
    unreadable: int
    """Images that are missing, broken or not images."""
    classes: dict[str, int]
    """Images, boxes or pixels of each class."""
    extra: dict[str, int] = field(default_factory=dict)
    """What else the task counts."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What validation found. A folder that is not a data set has no report: reading it raises."""

    root: str
    note: str
    """How the splits were found or made."""
    depth: Depth
    unit: str
    """What `SplitSummary.classes` counts: images, boxes or pixels."""
    splits: dict[str, SplitSummary]
    issues: tuple[Issue, ...]
    details: tuple[str, ...] = ()
    """Sizes, formats and modes of the images."""
    unusable: dict[str, frozenset[int]] = field(default_factory=dict)
    """Split -> samples that training cannot use."""

    def select_issues(self, *severities: Severity) -> list[Issue]:
        return [issue for issue in self.issues if issue.severity in severities]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; unusual things do not count."""
        return not self.select_issues("blocking", "error")

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def __str__(self) -> str:
        total = sum(summary.images for summary in self.splits.values())
        lines = [f"{self.root}: {total} images, {_DEPTHS[self.depth]}", f"  {self.note}"]
        lines += [f"  {line}" for line in (*self._table(), *self.details)]
        for severity in ("warning", "error", "blocking"):
            by_category: dict[str, list[Issue]] = {}
            for issue in self.select_issues(severity):
                by_category.setdefault(issue.category, []).append(issue)
            level = "warning" if severity == "warning" else "error"
            for category, issues in by_category.items():
                limit = len(issues) if severity == "blocking" else MAX_LISTED
                lines += [f"{level}: {issue}" for issue in issues[:limit]]
                if len(issues) > limit:
                    lines.append(f"{level}: ... {len(issues) - limit} more: {category}")
        counts = Counter(issue.category for issue in self.select_issues("blocking", "error"))
        lines.append("; ".join(f"{name}: {n}" for name, n in counts.items()) or "no errors found")
        return "\n".join(lines)

    def _table(self) -> Iterator[str]:
        summaries = list(self.splits.values())
        rows: list[tuple[str, list[str]]] = [("images", [f"{s.images}" for s in summaries])]
        if any(summary.unreadable for summary in summaries):
            rows.append(("  unreadable", [f"{s.unreadable}" for s in summaries]))
        totals = [sum(summary.classes.values()) for summary in summaries]
        extra = [dict.fromkeys(name for s in summaries for name in s.extra)]
        names = dict.fromkeys(name for summary in summaries for name in summary.classes)
        if self.unit == "pixels" and self.depth != "decode":
            pass  # they have not been counted
        elif self.unit == "pixels":
            for name in names:
                parts = [s.classes.get(name, 0) for s in summaries]
                rows.append((name, _shares(parts, totals)))
            for name in extra[0]:
                parts = [s.extra.get(name, 0) for s in summaries]
                every = [total + part for total, part in zip(totals, parts, strict=True)]
                rows.append((f"({name})", _shares(parts, every)))
        else:
            if self.unit != "images":
                rows.append((self.unit, [f"{total}" for total in totals]))
            rows += [(f"  {n}", [f"{s.extra.get(n, 0)}" for s in summaries]) for n in extra[0]]
            rows += [(n, [f"{s.classes.get(n, 0)}" for s in summaries]) for n in names]
        width = max(len(name) for name, _ in rows)
        yield f"{'':<{width}}" + "".join(f"  {name:>9}" for name in self.splits)
        for name, cells in rows:
            yield f"{name:<{width}}" + "".join(f"  {cell:>9}" for cell in cells)


def _shares(parts: Sequence[int], totals: Sequence[int]) -> list[str]:
    return [f"{part / max(1, total):.2%}" for part, total in zip(parts, totals, strict=True)]


def validate(
    root: str | os.PathLike[str],
    splits: Mapping[str, Samples],
    *,
    issues: Sequence[Issue] = (),
    note: str = "",
    depth: Depth,
    warnings: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Examine annotations, images and what lies on them, and report all that is wrong.

    Args:
        issues: known ones, such as those of `divide`.
        note: how the splits were found or made.
        depth: what to read. "headers" finds files that are not images, empty, cut off or too large;
            "decode" also finds damage within, and images of equal bytes.
        warnings: also report what is only unusual.
        workers: threads; by default as many as there are cores. Decoding and hashing release
            Python's lock, so processes would not be faster.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    found = [*_dataset_issues(splits, warnings=warnings), *issues]
    missing = {
        (id(samples.dataset), issue.image)
        for samples in splits.values()
        for issue in samples.dataset.issues
        if issue.category == MISSING_IMAGES
    }
    tallies = {name: _Tally(samples, warnings) for name, samples in splits.items()}
    for name, samples in splits.items():

        def look(index: int, samples: Samples = samples) -> _Look:
            exists = (id(samples.dataset), int(samples.indices[index])) not in missing
            return _look(samples, index, depth if exists else "annotations", count=warnings)

        results = map_parallel(look, range(len(samples)), workers=workers, progress=progress)
        for index, result in enumerate(results):
            tallies[name].add(index, result)
        found += tallies[name].issues
    if warnings:
        found += _class_warnings(root, splits, tallies, depth)
        found += _image_warnings(root, tallies)
        found += _equal_images(splits, tallies)
    classes = list(dict.fromkeys(name for samples in splits.values() for name in samples.classes))
    found = list(dict.fromkeys(found))  # an image in two splits has the same issues in both
    return Report(
        root=os.fspath(root),
        note=note,
        depth=depth,
        unit=next(iter(splits.values())).unit if splits else "images",
        splits={name: tally.summary(classes) for name, tally in tallies.items()},
        issues=tuple(found),
        details=tuple(_details(tallies)),
        unusable={name: _unusable(splits[name], tallies[name]) for name in splits},
    )


def _dataset_issues(splits: Mapping[str, Samples], *, warnings: bool) -> Iterator[Issue]:
    """What readers found about these splits and their images."""
    for samples in splits.values():
        images = set(samples.indices.tolist())
        for issue in samples.dataset.issues:
            if issue.severity == "warning" and not warnings:
                continue
            if issue.image is not None:
                concerned = issue.image in images
            else:
                concerned = issue.split is None or issue.split in splits
            if concerned:
                yield issue


def blocked_images(dataset: ParsedDataset) -> set[int]:
    """Images that the data set's own issues make unusable."""
    return {i.image for i in dataset.issues if i.severity == "blocking" and i.image is not None}


def _unusable(samples: Samples, tally: _Tally) -> frozenset[int]:
    blocked = blocked_images(samples.dataset)
    broken = (i for i, image in enumerate(samples.indices.tolist()) if image in blocked)
    return frozenset(tally.unusable) | frozenset(broken)


class _Look(NamedTuple):
    facts: ImageFacts | None
    digest: bytes | None
    """Hash of the file's bytes; None where they were not read."""
    error: ImageError | None
    examination: Examination


def _look(samples: Samples, index: int, depth: Depth, *, count: bool) -> _Look:
    facts = digest = error = None
    source = samples.source(index)
    if depth != "annotations" and isinstance(source, Path):
        try:
            facts = image_facts(source)
            if depth == "decode":
                content = source.read_bytes()
                open_image(content)
                digest = hashlib.blake2b(content, digest_size=16).digest()
            elif not is_complete(source, facts.format):
                open_image(source)
        except ImageError as reason:
            facts, error = None, reason
    examination = samples.examine(index, facts, decode=depth == "decode", count=count)
    return _Look(facts, digest, error, examination)


def is_complete(path: Path, image_format: str) -> bool:
    """Whether a file has the last bytes of its format, so that it has surely not been cut off.

    False leaves it open, and only decoding decides: cameras and phones append to files, and most
    formats have no end mark.
    """
    with path.open("rb") as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 256, 0))
        tail = file.read()
    match image_format:
        case "JPEG" | "MPO":
            return tail.rstrip(b"\x00").endswith(b"\xff\xd9")  # zeros: padding to full blocks
        case "PNG":
            return tail.endswith(b"\x00\x00\x00\x00IEND\xae\x42\x60\x82")
        case "GIF":
            return tail.endswith(b"\x00;")
        case "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        case _:
            return False


class _Tally:
    """What was found in one split so far, in little memory: there may be millions of samples."""

    def __init__(self, samples: Samples, warnings: bool) -> None:
        self.samples, self.warnings = samples, warnings
        self.issues: list[Issue] = []
        self.unusable: set[int] = set()
        self.unreadable = 0
        self.counts: Counter[int | str] = Counter()
        self.widths, self.heights = array("I"), array("I")
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.animated = 0
        self.digests: dict[int, bytes] = {}

    def add(self, index: int, result: _Look) -> None:
        facts, digest, error, examination = result
        name = self.samples.name(index)
        image = int(self.samples.indices[index])
        if error is not None:
            self.issues.append(Issue(UNREADABLE_IMAGES, name, error.reason, image=image))
        self.unreadable += facts is None
        self.issues += examination.issues
        self.counts.update(examination.counts)
        if error or any(one.severity == "blocking" for one in examination.issues):
            self.unusable.add(index)
        if facts is None or not self.warnings:
            return
        self.widths.append(facts.width)
        self.heights.append(facts.height)
        self.modes[facts.mode] += 1
        self.formats[facts.format] += 1
        self.animated += facts.frames > 1
        if digest is not None:
            self.digests[index] = digest
        if not facts.extension_matches:
            message = f"contains {facts.format}, unlike its name; it is read"
            self.issues.append(Issue(IMAGE_FILES, name, message, "warning"))

    def summary(self, classes: Sequence[str]) -> SplitSummary:
        own = {name: self.counts[label] for label, name in enumerate(self.samples.classes)}
        return SplitSummary(
            images=len(self.samples),
            unreadable=self.unreadable,
            classes={name: own.get(name, 0) for name in classes},
            extra={name: self.counts[name] for name in self.samples.extra_counts},
        )


def _class_warnings(
    root: str | os.PathLike[str],
    splits: Mapping[str, Samples],
    tallies: Mapping[str, _Tally],
    depth: Depth,
) -> Iterator[Issue]:
    """Classes that do not occur, or hardly, or are spelt in two ways."""
    where = os.fspath(root)
    samples = next(iter(splits.values()), None)
    if samples is None:
        return
    classes = list(dict.fromkeys(name for one in splits.values() for name in one.classes))
    if samples.unit != "pixels" or depth == "decode":  # else pixels have not been counted
        counts = {name: tally.summary(classes).classes for name, tally in tallies.items()}
        absent = [name for name in classes if not any(count[name] for count in counts.values())]
        if absent:
            yield Issue(CLASSES, where, f"no {samples.unit} of: {', '.join(absent)}", "warning")
        for split, count in counts.items():
            if lacking := [name for name in classes if not count[name] and name not in absent]:
                message = f"no {samples.unit} in {split} of: {', '.join(lacking)}"
                yield Issue(CLASSES, where, message, "warning")
        if samples.unit == "images" and "train" in counts:
            tiny = {name: n for name, n in counts["train"].items() if 0 < n < TINY_CLASS}
            if tiny:
                message = f"fewer than {TINY_CLASS} images in train: {_listed(tiny)}"
                yield Issue(CLASSES, where, message, "warning")
    spellings: dict[str, str] = {}
    for name in classes:
        other = spellings.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            message = f'classes "{other}" and "{name}" differ only in case or spaces'
            yield Issue(CLASSES, where, message, "warning")


def _image_warnings(root: str | os.PathLike[str], tallies: Mapping[str, _Tally]) -> Iterator[Issue]:
    sides = ((w, h) for t in tallies.values() for w, h in zip(t.widths, t.heights, strict=True))
    if small := sum(min(side) < SMALL_SIDE for side in sides):
        message = f"{small} images have a side below {SMALL_SIDE} pixels"
        yield Issue(IMAGE_FILES, os.fspath(root), message, "warning")
    if animated := sum(tally.animated for tally in tallies.values()):
        message = f"{animated} files have several frames; the first is used"
        yield Issue(IMAGE_FILES, os.fspath(root), message, "warning")


def _equal_images(splits: Mapping[str, Samples], tallies: Mapping[str, _Tally]) -> Iterator[Issue]:
    """Images that occur more than once: the same file, or files of equal bytes."""
    elsewhere: dict[bytes | str, tuple[str, str]] = {}
    for split, samples in splits.items():
        own: dict[bytes | str, tuple[str, int]] = {}
        for index in range(len(samples)):
            file = samples.name(index)
            key = tallies[split].digests.get(index, file)
            twin, other = own.setdefault(key, (file, index))
            if other != index and twin == file:
                yield Issue(REPEATED_IMAGES, file, f"is stated more than once in {split}", "error")
            elif other != index and not samples.agree(other, index):
                message = f"is the same file as {twin}, in another class"
                yield Issue(CONFLICTING_LABELS, file, message, "warning")
            first, first_split = elsewhere.setdefault(key, (file, split))
            if first_split != split:
                same = "the same file as" if first == file else "of the same bytes as"
                message = f"({split}) is {same} {first} ({first_split})"
                yield Issue(SHARED_IMAGES, file, message, "warning")


def _details(tallies: Mapping[str, _Tally]) -> Iterator[str]:
    for side in ("width", "height"):
        values = [value for tally in tallies.values() for value in getattr(tally, f"{side}s")]
        if values:
            low, high = min(values), max(values)
            yield f"{side}: {low} to {high} pixels, median {median_low(values)}"
    formats = sum((tally.formats for tally in tallies.values()), Counter[str]())
    modes = sum((tally.modes for tally in tallies.values()), Counter[str]())
    if formats:
        yield f"formats: {_listed(formats)}; modes: {_listed(modes)}"


def _listed(counts: Mapping[str, int]) -> str:
    """`RGB 12, L 3`: the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common())


T = TypeVar("T")
R = TypeVar("R")


def map_parallel(
    work: Callable[[T], R], items: Sequence[T], *, workers: int, progress: bool = True
) -> Iterator[R]:
    """Apply `work` to items in threads and yield the results in order, a bounded number ahead."""
    remaining = iter(items)

    def work_on(chunk: Sequence[T]) -> list[R]:
        return [work(item) for item in chunk]

    with (
        progress_bar("checking images", len(items), show=progress) as advance,
        ThreadPoolExecutor(workers) as executor,
    ):
        while waiting := list(islice(remaining, _WAITING)):
            chunks = [waiting[begin : begin + _CHUNK] for begin in range(0, len(waiting), _CHUNK)]
            for results in executor.map(work_on, chunks):
                yield from results
                advance(len(results))
