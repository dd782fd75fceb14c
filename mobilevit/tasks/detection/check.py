"""Look at annotated images before training on them: all that is wrong at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilevit.data.formats.base import Reading
from mobilevit.data.formats.folders import VAL_FOLDERS, DataError
from mobilevit.data.validate import BadFile, Readable, examine_all
from mobilevit.tasks.detection.dataset import BoxSamples, clipped, some, split_off
from mobilevit.tasks.detection.open import EVERYTHING, BoxSource, find_boxes
from mobilevit.utils.devices import available_cores

SMALL, MEDIUM = 32**2, 96**2
"""Square pixels below which COCO calls a box small, and medium."""
AT_MOST = 20
"""So many problems of a kind are written out; `BoxReport.problems` has all."""
_ORDER = (EVERYTHING, "train", "trainval", *VAL_FOLDERS)
_TOLERANCE = 1.0  # pixels that a box may stand out without a word: rounding


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or odd."""

    kind: str
    """A few words that are the same for all problems of a kind."""
    where: str
    """File, file and line, or file and annotation id."""
    what: str
    error: bool = True
    """Whether training stops at it, leaves something out for it, or learns something false."""


@dataclass(frozen=True)
class SplitFacts:
    """What is in one split."""

    images: int
    """All that the annotations speak of."""
    unreadable: int
    """Of these, those that are missing, broken or no images."""
    empty: int
    """Images without a usable box."""
    boxes: dict[str, int]
    """Usable boxes of each class."""
    crowd: int
    """Of the boxes, those that are not trained on: COCO's crowds, what VOC calls difficult."""
    unusable: int
    """Boxes that are left out, besides."""
    sizes: tuple[int, int, int]
    """Usable boxes that are small, medium and large, as COCO has it; by `Annotation.area`."""


@dataclass(frozen=True)
class BoxReport:
    """What a check of annotated images found."""

    root: Path
    format: str
    quick: bool
    """Headers and file ends only; then images of equal bytes were not looked for."""
    splits: dict[str, SplitFacts]
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; what is only odd does not count."""
        return not any(problem.error for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong, else 1."""
        return 0 if self.ok else 1

    def __str__(self) -> str:
        """Give the report as text for a person."""
        return "\n".join([*self._summary(), *self._listed(False), *self._listed(True), self._end()])

    def _summary(self) -> Iterator[str]:
        how = "headers and file ends" if self.quick else "every image decoded"
        images = sum(facts.images for facts in self.splits.values())
        yield f"{self.root}: {self.format}, {images} images, {how}"
        for remark in self.remarks:
            yield f"  {remark}"
        rows: list[tuple[str, list[int]]] = []
        everything = list(self.splits.values())
        rows.append(("images", [facts.images for facts in everything]))
        rows.append(("  unreadable", [facts.unreadable for facts in everything]))
        rows.append(("  without boxes", [facts.empty for facts in everything]))
        rows.append(("boxes", [sum(facts.boxes.values()) for facts in everything]))
        rows.append(("  left out besides", [facts.unusable for facts in everything]))
        rows.append(("  crowd or difficult", [facts.crowd for facts in everything]))
        for place, size in enumerate(("small", "medium", "large")):
            rows.append((f"  {size}", [facts.sizes[place] for facts in everything]))
        names = everything[0].boxes if everything else ()
        rows += [(name, [facts.boxes[name] for facts in everything]) for name in names]
        width = max(len(name) for name, _ in rows)
        yield f"  {'':<{width}}" + "".join(f"  {name:>9}" for name in self.splits)
        for name, counts in rows:
            yield f"  {name:<{width}}" + "".join(f"  {count:>9}" for count in counts)

    def _listed(self, error: bool) -> Iterator[str]:
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            if problem.error is error:
                kinds.setdefault(problem.kind, []).append(problem)
        for kind, problems in kinds.items():
            level = "error" if error else "warning"
            yield from (f"{level}: {one.where}: {one.what}" for one in problems[:AT_MOST])
            if len(problems) > AT_MOST:
                yield f"{level}: ... {len(problems) - AT_MOST} more: {kind}"

    def _end(self) -> str:
        if self.ok:
            return "nothing is wrong with it"
        kinds = Counter(problem.kind for problem in self.problems if problem.error)
        return "; ".join(f"{kind}: {count}" for kind, count in kinds.items())


def check_boxes(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    workers: int | None = None,
    quick: bool = False,
    progress: bool = True,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> BoxReport:
    """Examine every image and every box of a data set, and report all that is wrong.

    Args:
        root: as for `find_boxes`, and so is `format`.
        workers: threads that decode; as many as the machine has processors unless given.
        quick: read headers and file ends instead of decoding all. Finds what is no image, empty,
            cut off or too large; not what is damaged within, and no images of equal bytes.
        progress: show a progress bar where there is a terminal.
        val_fraction: as for `box_splits`, and so is `seed`; they tell train and val apart where the
            data set does not.

    Raises:
        DataError: nothing is recognised; see `find_boxes`.
        ValueError: an option is out of range.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    source = find_boxes(root, format=format)
    readings = list({id(reading): reading for reading, _ in source.parts.values()}.values())
    parts = _parts(source)
    if held_out := set(parts).isdisjoint(VAL_FOLDERS):
        parts, held_out = _held_out(parts, val_fraction, seed)
    missing = {
        reading.samples.files[fault.image]
        for reading in readings
        for fault in reading.faults
        if fault.missing and fault.image is not None
    }
    paths = dict.fromkeys(file for samples in parts.values() for file in samples.files)
    findings = examine_all(
        [Path(path) for path in paths if path not in missing],
        workers=workers,
        quick=quick,
        progress=progress,
    )
    readable = {str(found.path): found for found in findings if isinstance(found, Readable)}
    problems = [*_faults(readings)]
    problems += [
        Problem("images that cannot be read", str(found.path), found.reason)
        for found in findings
        if isinstance(found, BadFile)
    ]
    classes = _all_classes(parts)
    splits: dict[str, SplitFacts] = {}
    for name, samples in parts.items():
        splits[name], found_here = _examine(samples, classes, readable)
        problems += found_here
    problems += _oddities(source.root, splits, classes)
    problems += _shared(parts, readable)
    problems += [
        Problem("files that are no part of it", *line.rpartition(": ")[::2], error=False)
        for line in dict.fromkeys(line for reading in readings for line in reading.unused)
    ]
    remarks = [remark for reading in readings for remark in reading.remarks]
    if held_out:
        remarks.append(f"{val_fraction:.0%} of the images held out with seed {seed}")
    # Without repetition: an image in two splits has the same problems in both.
    problems = list(dict.fromkeys(problems))
    return BoxReport(
        source.root, source.format, quick, splits, tuple(problems), tuple(dict.fromkeys(remarks))
    )


def _parts(source: BoxSource) -> dict[str, BoxSamples]:
    """The images of each split, good and bad, in the usual order."""
    names = [name for name in _ORDER if name in source.parts]
    if "trainval" in names:  # all of which is in train or val as well
        again = ["trainval"] if "train" in names else ["val", "valid", "validation"]
        names = [name for name in names if name not in again]
    parts = {}
    for name in names:
        reading, images = source.parts[name]
        parts[name] = some(reading.samples, images)
    return parts


def _held_out(
    parts: dict[str, BoxSamples], val_fraction: float, seed: int
) -> tuple[dict[str, BoxSamples], bool]:
    """Splits as training makes them where there is none to evaluate by, if that is possible."""
    ((_, samples),) = parts.items()
    try:
        train, val = split_off(samples, val_fraction, seed)
    except DataError:
        return {"all": samples}, False
    return {"train": train, "val": val}, True


def _faults(readings: Sequence[Reading]) -> Iterator[Problem]:
    """What the readers met."""
    for reading in readings:
        for fault in reading.faults:
            kind = "missing images" if fault.missing else "annotations that cannot be used"
            yield Problem(kind, fault.where, fault.what)


def _all_classes(parts: dict[str, BoxSamples]) -> list[str]:
    """The classes of all splits, in the order of the first that has them."""
    return list(dict.fromkeys(name for samples in parts.values() for name in samples.classes))


def _examine(
    samples: BoxSamples, classes: Sequence[str], readable: dict[str, Readable]
) -> tuple[SplitFacts, list[Problem]]:
    """Count, and look at every box."""
    problems: list[Problem] = []
    usable = samples.usable()
    areas = np.zeros(len(usable))
    empty = unreadable = 0
    for index, file in enumerate(samples.files):
        rows = samples.rows(index)
        found = readable.get(file)
        if found is None:
            unreadable += 1
            recorded = samples.recorded_size(index)
            if recorded is None:
                areas[rows] = np.nan if samples.relative else _areas(samples.corners[rows])
            else:
                areas[rows] = _areas(clipped(samples.placed(index, *recorded, 1), *recorded)[0])
        else:
            header = found.facts.height, found.facts.width, found.facts.orientation
            height, width, _ = header
            problems += _of_size(samples, index, *header)
            placed = samples.placed(index, *header)
            inside, usable[rows] = clipped(placed, height, width)
            areas[rows] = _areas(inside)
            problems += _of_boxes(samples, rows.start, placed, usable[rows], height, width)
        problems += _repeated(samples, rows)
        empty += not usable[rows].any()
    areas = np.where(samples.areas > 0, samples.areas, areas)[usable]
    counts = np.bincount(samples.labels[usable], minlength=len(samples.classes)).tolist()
    by_name = dict(zip(samples.classes, counts, strict=True))
    small = int((areas < SMALL).sum())
    large = int((areas >= MEDIUM).sum())
    facts_of_split = SplitFacts(
        images=len(samples),
        unreadable=unreadable,
        empty=empty,
        boxes={name: by_name.get(name, 0) for name in classes},
        crowd=int(samples.crowd[usable].sum()),
        unusable=int((~usable).sum()),
        sizes=(small, int((~np.isnan(areas)).sum()) - small - large, large),
    )
    twice = [file for file, times in Counter(samples.files).items() if times > 1]
    problems += [
        Problem("images stated more than once", file, "is stated more than once in a split")
        for file in twice
    ]
    return facts_of_split, problems


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _of_size(
    samples: BoxSamples, index: int, height: int, width: int, orientation: int
) -> Iterator[Problem]:
    """Whether an image is of the size that its annotations state, upright or as it is stored."""
    recorded = samples.recorded_size(index)
    stored = samples.stored_as_recorded(index, height, width, orientation)
    if recorded not in (None, (height, width)) and not stored:
        yield Problem(
            "images of another size than stated",
            samples.files[index],
            f"is {width} x {height} pixels, but by {samples.annotated_by[index]} "
            f"{recorded[1]} x {recorded[0]}",
        )


def _of_boxes(
    samples: BoxSamples, start: int, placed: np.ndarray, usable: np.ndarray, height: int, width: int
) -> Iterator[Problem]:
    """Boxes [N, 4] of one image that are left out, or cut."""
    limits = np.array([width, height, width, height], float)
    beyond = np.maximum(-placed, placed - limits).max(axis=1, initial=0.0)
    for row in np.flatnonzero(~usable | (beyond > _TOLERANCE)).tolist():
        corners = ", ".join(f"{side:g}" for side in placed[row])
        name = samples.box_name(start + row)
        x1, y1, x2, y2 = placed[row]
        if usable[row]:
            what = f"({corners}) stands {beyond[row]:.0f} pixels out of {width} x {height}; is cut"
            yield Problem("boxes partly outside their images", name, what, error=False)
        elif not np.isfinite(placed[row]).all():
            yield Problem("boxes that are no numbers", name, f"({corners}) is left out")
        elif x2 <= x1 or y2 <= y1:
            what = f"({corners}) has no width or no height, and is left out"
            yield Problem("boxes without width or height", name, what)
        else:
            what = f"({corners}) is outside {width} x {height}, and is left out"
            yield Problem("boxes outside their images", name, what)


def _repeated(samples: BoxSamples, rows: slice) -> Iterator[Problem]:
    """Boxes of one image that are there twice, with the same class."""
    first: dict[tuple[float, ...], int] = {}
    for row in range(rows.start, rows.stop):
        key = (float(samples.labels[row]), *samples.corners[row].tolist())
        if (other := first.setdefault(key, row)) != row:
            what = f"the same box and class as {samples.box_name(other)}"
            yield Problem("boxes stated twice", samples.box_name(row), what, error=False)


def _oddities(
    root: Path, splits: dict[str, SplitFacts], classes: Sequence[str]
) -> Iterator[Problem]:
    """What is odd about classes."""
    never = [name for name in classes if not any(f.boxes[name] for f in splits.values())]
    if never:
        yield Problem("classes", str(root), f"no boxes of: {', '.join(never)}", error=False)
    train = splits.get("train")
    lacking = [] if train is None else [n for n, count in train.boxes.items() if count == 0]
    if lacking := [name for name in lacking if name not in never]:
        what = f"no boxes in train, but in others, of: {', '.join(lacking)}"
        yield Problem("classes", str(root), what, error=False)
    spelt: dict[str, str] = {}
    for name in classes:
        other = spelt.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            what = f'classes "{other}" and "{name}" differ in capitals or spaces only'
            yield Problem("classes", str(root), what, error=False)


def _shared(parts: dict[str, BoxSamples], readable: dict[str, Readable]) -> Iterator[Problem]:
    """Images that are in two splits: the same file, or files of equal bytes."""
    seen: dict[bytes | str, tuple[str, str]] = {}
    for name, samples in parts.items():
        for file in dict.fromkeys(samples.files):
            found = readable.get(file)
            key = file if found is None or found.digest is None else found.digest
            other, split = seen.setdefault(key, (file, name))
            if split != name:
                same = "the same file as" if other == file else "of the same bytes as"
                what = f"({name}) is {same} {other} ({split})"
                yield Problem("images in two splits", file, what, error=False)
