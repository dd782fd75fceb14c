"""Validation of a data set: the same for training, which refuses it, and `mobilevit check`."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Literal, NamedTuple, TypeAlias

from mobilevit.data.formats.base import MISSING_IMAGES, Issue, ParsedDataset, Severity
from mobilevit.data.image_formats import is_complete
from mobilevit.data.images import ImageError, ImageFacts, image_facts, open_image
from mobilevit.data.splits import Samples
from mobilevit.utils.devices import available_cores
from mobilevit.utils.progress import map_parallel

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

    def _table(self) -> list[str]:
        summaries = list(self.splits.values())
        rows = {"images": [f"{s.images}" for s in summaries]}
        if any(summary.unreadable for summary in summaries):
            rows["  unreadable"] = [f"{s.unreadable}" for s in summaries]
        if self.unit == "boxes":
            rows["boxes"] = [f"{sum(s.classes.values())}" for s in summaries]
        if self.unit == "pixels" and self.depth != "decode":
            summaries = []  # pixels have not been counted
        for name in dict.fromkeys(name for s in summaries for name in (*s.extra, *s.classes)):
            rows[name] = [self._cell(summary, name) for summary in summaries]
        width = max(map(len, rows))
        heads = {"": list(self.splits)}
        return [
            f"{name:<{width}}" + "".join(f"  {cell:>9}" for cell in cells)
            for name, cells in (heads | rows).items()
        ]

    def _cell(self, summary: SplitSummary, name: str) -> str:
        extra = summary.extra.get(name, 0)
        count = summary.classes.get(name, 0) + extra
        if self.unit != "pixels":
            return f"{count}"
        return f"{count / max(1, sum(summary.classes.values()) + extra):.2%}"  # of labelled ones


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
        warnings: also report what is only unusual about images and classes.
        workers: threads; by default as many as there are cores. Decoding and hashing release
            Python's lock, so processes would not be faster.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    found = [*dataset_issues(splits), *issues]
    tallies: dict[str, _Tally] = {}
    for name, samples in splits.items():
        tally = tallies[name] = _Tally(samples, depth, count=warnings)
        indices = range(len(samples))
        results = map_parallel(
            tally.look, indices, "checking images", workers=workers, progress=progress
        )
        for index, result in enumerate(results):
            tally.add(index, result)
        found += tally.issues
    classes = list(dict.fromkeys(name for samples in splits.values() for name in samples.classes))
    summaries = {name: tally.summary(classes) for name, tally in tallies.items()}
    unit = next((samples.unit for samples in splits.values()), "images")
    if warnings:
        counted = unit != "pixels" or depth == "decode"
        unusual = [*_class_warnings(summaries if counted else {}, classes, unit)]
        unusual += _image_warnings(tallies)
        where = os.fspath(root)
        found += [Issue(category, where, message, "warning") for category, message in unusual]
        if depth != "annotations":
            found += _equal_images(splits, tallies)
    return Report(
        root=os.fspath(root),
        note=note,
        depth=depth,
        unit=unit,
        splits=summaries,
        issues=tuple(dict.fromkeys(found)),  # an image in two splits has the same issues in both
        details=tuple(_details(tallies)),
        unusable={name: frozenset(tally.unusable) for name, tally in tallies.items()},
    )


def dataset_issues(splits: Mapping[str, Samples]) -> Iterator[Issue]:
    """What readers found about these splits and their images."""
    for samples in splits.values():
        images = set(samples.indices.tolist())
        for issue in samples.dataset.issues:
            if (issue.image is None or issue.image in images) and issue.split in (None, *splits):
                yield issue


def blocked_images(dataset: ParsedDataset) -> set[int]:
    """Images that the data set's own issues make unusable."""
    return {i.image for i in dataset.issues if i.severity == "blocking" and i.image is not None}


class _Look(NamedTuple):
    facts: ImageFacts | None
    digest: bytes | None
    """Hash of the file's bytes; None where they were not read."""
    issues: list[Issue]
    counts: Mapping[int | str, int]


class _Tally:
    """What was found in one split so far, in little memory: there may be millions of samples."""

    def __init__(self, samples: Samples, depth: Depth, *, count: bool) -> None:
        self.samples, self.depth, self.count = samples, depth, count
        self.issues: list[Issue] = []
        blocked = blocked_images(samples.dataset)
        images = enumerate(samples.indices.tolist())
        self.unusable = {index for index, image in images if image in blocked}
        self.missing = {i.image for i in samples.dataset.issues if i.category == MISSING_IMAGES}
        self.unreadable = 0
        self.counts: Counter[int | str] = Counter()
        self.sides = {"width": array("I"), "height": array("I")}
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.animated = 0
        self.digests: dict[int, bytes] = {}

    def look(self, index: int) -> _Look:
        """Examine one sample; called from several threads."""
        samples, image = self.samples, int(self.samples.indices[index])
        depth = "annotations" if image in self.missing else self.depth
        facts = digest = None
        issues = []
        source = None if depth == "annotations" else samples.source(index)
        if isinstance(source, Path | bytes):  # else an image in memory
            try:
                facts = image_facts(source)
                if depth == "decode":
                    content = source.read_bytes() if isinstance(source, Path) else source
                    open_image(content)
                    digest = hashlib.blake2b(content, digest_size=16).digest()
                elif isinstance(source, Path) and not is_complete(source, facts.format):
                    open_image(source)
            except (ImageError, OSError) as error:
                facts = None
                reason = (
                    error.reason if isinstance(error, ImageError) else f"cannot be read: {error}"
                )
                issues = [Issue(UNREADABLE_IMAGES, samples.name(index), reason, image=image)]
        found = samples.examine(index, facts, decode=depth == "decode", count=self.count)
        if self.count and facts is not None and not facts.extension_matches:
            message = f"contains {facts.format}, unlike its name; it is read"
            issues.append(Issue(IMAGE_FILES, samples.name(index), message, "warning"))
        return _Look(facts, digest, [*issues, *found.issues], found.counts)

    def add(self, index: int, result: _Look) -> None:
        facts = result.facts
        self.unreadable += facts is None and self.depth != "annotations"
        self.issues += result.issues
        self.counts.update(result.counts)
        if any(issue.severity == "blocking" for issue in result.issues):
            self.unusable.add(index)
        if facts is not None:
            self.sides["width"].append(facts.width)
            self.sides["height"].append(facts.height)
            self.modes[facts.mode] += 1
            self.formats[facts.format] += 1
            self.animated += facts.frames > 1
        if result.digest is not None:
            self.digests[index] = result.digest

    def summary(self, classes: Sequence[str]) -> SplitSummary:
        own = {name: self.counts[label] for label, name in enumerate(self.samples.classes)}
        return SplitSummary(
            images=len(self.samples),
            unreadable=self.unreadable,
            classes={name: own.get(name, 0) for name in classes},
            extra={name: self.counts[name] for name in self.samples.extra_counts},
        )


def _class_warnings(
    summaries: Mapping[str, SplitSummary], classes: Sequence[str], unit: str
) -> Iterator[tuple[str, str]]:
    """Classes that do not occur, or hardly, or are spelt in two ways."""
    counts = {split: summary.classes for split, summary in summaries.items()}
    absent = [name for name in classes if not any(count[name] for count in counts.values())]
    if absent and counts:
        yield CLASSES, f"no {unit} of: {', '.join(absent)}"
    for split, count in counts.items():
        if lacking := [name for name in classes if not count[name] and name not in absent]:
            yield CLASSES, f"no {unit} in {split} of: {', '.join(lacking)}"
    train = counts.get("train", {}) if unit == "images" else {}
    if tiny := {name: count for name, count in train.items() if 0 < count < TINY_CLASS}:
        yield CLASSES, f"fewer than {TINY_CLASS} images in train: {_listed(tiny)}"
    spellings: dict[str, str] = {}
    for name in classes:
        other = spellings.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            yield CLASSES, f'classes "{other}" and "{name}" differ only in case or spaces'


def _image_warnings(tallies: Mapping[str, _Tally]) -> Iterator[tuple[str, str]]:
    sides = (side for tally in tallies.values() for side in zip(*tally.sides.values(), strict=True))
    if small := sum(min(side) < SMALL_SIDE for side in sides):
        yield IMAGE_FILES, f"{small} images have a side below {SMALL_SIDE} pixels"
    if animated := sum(tally.animated for tally in tallies.values()):
        yield IMAGE_FILES, f"{animated} files have several frames; the first is used"


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
        if values := [value for tally in tallies.values() for value in tally.sides[side]]:
            low, high = min(values), max(values)
            yield f"{side}: {low} to {high} pixels, median {median_low(values)}"
    formats = sum((tally.formats for tally in tallies.values()), Counter[str]())
    modes = sum((tally.modes for tally in tallies.values()), Counter[str]())
    if formats:
        yield f"formats: {_listed(formats)}; modes: {_listed(modes)}"


def _listed(counts: Mapping[str, int]) -> str:
    """`RGB 12, L 3`: the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common())
