"""Look at a data set before training on it: all its broken files at once, and what is odd."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Literal

from mobilevit.data.formats.folders import DataError, Split, TrainVal, splits
from mobilevit.data.images import ImageError, ImageFacts, image_facts, open_image
from mobilevit.data.paths import Paths
from mobilevit.utils.devices import available_cores
from mobilevit.utils.progress import progress_bar

log = logging.getLogger(__name__)

TINY_CLASS = 10
"""Classes with fewer training images than this are pointed out."""
SMALL_SIDE = 32
"""Images with a side of fewer pixels than this are pointed out."""

_WAITING = 1 << 13  # files that are given out at once
_CHUNK = 16  # files per task: few enough for smooth progress, enough to make tasks cheap


@dataclass(frozen=True)
class BadFile:
    """An image file that cannot be trained on."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Readable:
    """An image file that can be trained on, as far as was looked."""

    path: Path
    facts: ImageFacts
    digest: bytes | None
    """Hash of the file's bytes; None where they were not read."""


@dataclass(frozen=True)
class Sizes:
    """Upright sizes of the readable images, in pixels: (smallest, median, largest)."""

    width: tuple[int, int, int]
    height: tuple[int, int, int]
    small: int
    """Images with a side below `SMALL_SIDE`."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Broken files are errors: training would stop at them. Everything else is a warning, for the
    owner of the data to evaluate. A data set whose folders do not fit together gets no report;
    `check` raises.
    """

    root: Path
    note: str
    """How train and val came about."""
    quick: bool
    """Headers and file ends only; then duplicates were not looked for."""
    files: int
    bad: tuple[BadFile, ...]
    """Broken, truncated, empty, too large, or no image at all."""
    misnamed: tuple[tuple[Path, str], ...]
    """Readable files whose extension is of another format than their content, which is given."""
    ignored: tuple[Path, ...]
    """Visible files that are no samples; see `Split.ignored`."""
    empty: tuple[str, ...]
    """Class folders of train without images."""
    train_counts: dict[str, int]
    val_counts: dict[str, int]
    duplicates_across_splits: tuple[tuple[Path, Path], ...]
    """Files of equal bytes in train and val: they make the result look better than it is."""
    conflicts: tuple[tuple[Path, Path], ...]
    """Files of equal bytes in two classes of the same split: at least one label is wrong."""
    sizes: Sizes | None
    """None where no file is readable."""
    modes: dict[str, int]
    """Pillow's name of the stored channels -> files, the most frequent first."""
    formats: dict[str, int]
    """Format of the content -> files, the most frequent first."""
    animated: int
    """Files with more than one image, of which the first is used."""

    @property
    def missing_in_val(self) -> tuple[str, ...]:
        """Classes of train that val has no image of."""
        return tuple(name for name, count in self.val_counts.items() if count == 0)

    @property
    def tiny_classes(self) -> dict[str, int]:
        """Classes with fewer than `TINY_CLASS` images in train."""
        return {name: count for name, count in self.train_counts.items() if count < TINY_CLASS}

    @property
    def ok(self) -> bool:
        """Whether training can run over all of it."""
        return not self.bad

    @property
    def exit_code(self) -> int:
        """0 where training can run over all of it, else 1."""
        return 0 if self.ok else 1

    def __str__(self) -> str:
        """Give the report as text for a person, each bad file on a line of its own."""
        return "\n".join([*self._summary(), *self._warnings(), *self._errors()])

    def _summary(self) -> Iterator[str]:
        how = "headers and file ends" if self.quick else "every file decoded"
        yield f"{self.root}: {self.files} image files, {how}"
        yield f"  {self.note}"
        width = max(map(len, self.train_counts))
        yield f"  {'class':<{width}}  {'train':>7}  {'val':>7}"
        for name, count in self.train_counts.items():
            yield f"  {name:<{width}}  {count:>7}  {self.val_counts[name]:>7}"
        if self.sizes is not None:
            for side, (low, median, high) in (
                ("width", self.sizes.width),
                ("height", self.sizes.height),
            ):
                yield f"  {side}: {low} to {high} pixels, median {median}"
            yield f"  formats: {_listed(self.formats)}; modes: {_listed(self.modes)}"

    def _warnings(self) -> Iterator[str]:
        if self.missing_in_val:
            yield f"warning: no image in val of: {', '.join(self.missing_in_val)}"
        if self.tiny_classes:
            yield f"warning: fewer than {TINY_CLASS} in train: {_listed(self.tiny_classes)}"
        if self.empty:
            yield f"warning: folders without images, not taken for classes: {', '.join(self.empty)}"
        if self.sizes is not None and self.sizes.small:
            yield f"warning: {self.sizes.small} images have a side below {SMALL_SIDE} pixels"
        if self.animated:
            yield f"warning: {self.animated} files hold more than one image; the first is used"
        if self.ignored:
            extensions = Counter(path.suffix.lower() or "none" for path in self.ignored)
            yield f"warning: {len(self.ignored)} other files ignored, extensions: " + _listed(
                dict(extensions.most_common())
            )
        for path, content in self.misnamed:
            yield f"warning: {path}: content is {content}, whatever its name says; it is read"
        for first, second in self.conflicts:
            yield f"warning: {first} and {second} are the same file in two classes"
        for first, second in self.duplicates_across_splits:
            yield f"warning: {first} (train) and {second} (val) are the same file"

    def _errors(self) -> Iterator[str]:
        for file in self.bad:
            yield f"error: {file.path}: {file.reason}"
        if self.bad:
            yield f"{len(self.bad)} of {self.files} files cannot be read"
        else:
            yield "every file can be read" if not self.quick else "no broken file found"


def check(
    root: str | os.PathLike[str],
    *,
    workers: int | None = None,
    quick: bool = False,
    progress: bool = True,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> CheckReport:
    """Examine every image of a data set as `splits` finds it, and report all that is wrong.

    Args:
        root: as for `splits`, and so are `val_fraction` and `seed`.
        workers: threads; as many as the machine has processors unless given. Decoding and hashing
            run outside Python's lock, so threads do, without the cost of starting processes.
        quick: read headers and file ends instead of decoding all. Finds what is no image, empty,
            cut off or too large; not what is damaged within, and no duplicates.
        progress: show a progress bar where there is a terminal.

    Raises:
        DataError: the folders do not make a data set; see `splits`.
        ValueError: `workers` is less than 1.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    data = splits(root, val_fraction=val_fraction, seed=seed)
    paths = [*data.train.paths, *data.val.paths]
    findings = examine_all(paths, workers=workers, quick=quick, progress=progress)
    good = [finding for finding in findings if isinstance(finding, Readable)]
    facts = [finding.facts for finding in good]
    across, conflicts = _duplicates(data, good)
    return CheckReport(
        root=Path(root),
        note=data.note,
        quick=quick,
        files=len(paths),
        bad=tuple(finding for finding in findings if isinstance(finding, BadFile)),
        misnamed=tuple((g.path, g.facts.format) for g in good if not g.facts.extension_matches),
        ignored=data.train.ignored + data.val.ignored,
        empty=data.train.empty,
        train_counts=data.train.counts(),
        val_counts=data.val.counts(),
        duplicates_across_splits=across,
        conflicts=conflicts,
        sizes=_sizes(facts) if facts else None,
        modes=dict(Counter(fact.mode for fact in facts).most_common()),
        formats=dict(Counter(fact.format for fact in facts).most_common()),
        animated=sum(fact.frames > 1 for fact in facts),
    )


def readable(
    *splits: Split,
    on_bad: Literal["error", "skip"] = "error",
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Split, ...]:
    """Give splits without the files that cannot be read, or none.

    To leave files out all of them must be known ahead, so `skip` decodes every file; `error` takes
    the quick look, and leaves what is damaged within to whoever reads the file.

    Args:
        splits: what to look at.
        on_bad: what to do about bad files: raise an error that names all, or leave them out and
            log a warning that counts and names them.
        workers: as for `check`, and so is `progress`.

    Raises:
        DataError: there are bad files; or a split has no others.
        ValueError: `on_bad` is another word.
    """
    if on_bad not in ("error", "skip"):
        raise ValueError(f"on_bad must be error or skip, not {on_bad!r}")
    bad: dict[Path, str] = {}
    for split in splits:
        quick = on_bad == "error"
        bad |= unreadable(split.paths, workers=workers, quick=quick, progress=progress)
    if not bad:
        return splits
    total = sum(map(len, splits))
    listing = "\n".join(f"  {path}: {reason}" for path, reason in bad.items())
    if on_bad == "error":
        raise DataError(
            f"{len(bad)} of {total} files cannot be read; mend or remove them, or leave them "
            f"out by --data.on_bad skip:\n{listing}"
        )
    log.warning("%d skipped:\n%s", len(bad), listing)
    left = tuple(_without(split, bad) for split in splits)
    for before, after in zip(splits, left, strict=True):
        counts = after.counts()
        lost = [name for name, count in before.counts().items() if count and not counts[name]]
        if lost:
            log.warning("no readable image is left in %s of: %s", before.root, ", ".join(lost))
    return left


def unreadable(
    paths: Sequence[Path], *, workers: int | None = None, quick: bool = True, progress: bool = True
) -> dict[Path, str]:
    """Look at image files: those that cannot be read -> why not.

    Args:
        paths: the files.
        workers: threads that read; by default as many as there are cores.
        quick: decode only files whose last bytes leave it open whether they were cut off.
        progress: show a bar, where there is a terminal.
    """
    workers = available_cores() if workers is None else workers
    findings = _examined(paths, workers=workers, quick=quick, progress=progress)
    return {found.path: found.reason for found in findings if isinstance(found, BadFile)}


def _without(split: Split, bad: Container[Path]) -> Split:
    pairs = zip(split.paths, split.labels, strict=True)
    kept = [(path, label) for path, label in pairs if path not in bad]
    if not kept:
        raise DataError(f"{split.root}: not one of its {len(split)} images can be read")
    paths, labels = zip(*kept, strict=True)
    return replace(split, paths=Paths(paths, root=split.root), labels=labels)


def examine_all(
    paths: Sequence[Path], *, workers: int, quick: bool, progress: bool
) -> list[Readable | BadFile]:
    """One finding for each path, in the same order."""
    return list(_examined(paths, workers=workers, quick=quick, progress=progress))


def _examined(
    paths: Sequence[Path], *, workers: int, quick: bool, progress: bool
) -> Iterator[Readable | BadFile]:
    """One finding after another; of many files no more than some are waiting."""
    with (
        progress_bar("checking images", len(paths), show=progress) as advance,
        ThreadPoolExecutor(workers) as executor,
    ):
        for begin in range(0, len(paths), _WAITING):
            some = paths[begin : begin + _WAITING]
            chunks = [some[start : start + _CHUNK] for start in range(0, len(some), _CHUNK)]
            for found in executor.map(partial(_examine, quick=quick), chunks):
                yield from found
                advance(len(found))


def _examine(paths: Sequence[Path], *, quick: bool) -> list[Readable | BadFile]:
    """Findings on a few files."""
    findings: list[Readable | BadFile] = []
    for path in paths:
        digest = None
        try:
            facts = image_facts(path)
            if not quick:
                content = path.read_bytes()
                open_image(content)
                digest = hashlib.blake2b(content, digest_size=16).digest()
            elif not has_end_marker(path, facts.format):
                open_image(path)
        except ImageError as error:
            findings.append(BadFile(path, error.reason))
        else:
            findings.append(Readable(path, facts, digest))
    return findings


def has_end_marker(path: Path, image_format: str) -> bool:
    """Whether a file has the last bytes of its format, so that it has surely not been cut off.

    False says little: cameras and phones add to the end of files, and most formats have no end
    mark. Only decoding decides then.
    """
    with path.open("rb") as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 256, 0))
        tail = file.read()
    match image_format:
        case "JPEG" | "MPO":
            return tail.rstrip(b"\x00").endswith(b"\xff\xd9")  # zeros: padding to whole blocks
        case "PNG":
            return tail.endswith(b"\x00\x00\x00\x00IEND\xae\x42\x60\x82")
        case "GIF":
            return tail.endswith(b"\x00;")
        case "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        case _:
            return False


_Pairs = tuple[tuple[Path, Path], ...]


def _duplicates(data: TrainVal, good: Sequence[Readable]) -> tuple[_Pairs, _Pairs]:
    """Files of equal bytes: (train, val) pairs, and pairs of two classes within a split."""
    digests = {finding.path: finding.digest for finding in good if finding.digest is not None}
    in_train: dict[bytes, Path] = {}
    across: list[tuple[Path, Path]] = []
    conflicts: list[tuple[Path, Path]] = []
    for split in (data.train, data.val):
        first: dict[bytes, tuple[Path, int]] = {}
        for path, label in zip(split.paths, split.labels, strict=True):
            digest = digests.get(path)
            if digest is None:
                continue
            other, other_label = first.setdefault(digest, (path, label))
            if label != other_label:
                conflicts.append((other, path))
            if split is data.train:
                in_train.setdefault(digest, path)
            elif digest in in_train:
                across.append((in_train[digest], path))
    return tuple(across), tuple(conflicts)


def _sizes(facts: Sequence[ImageFacts]) -> Sizes:
    """Summarise upright sizes; `facts` is not empty."""
    widths, heights = [fact.width for fact in facts], [fact.height for fact in facts]
    return Sizes(
        width=(min(widths), median_low(widths), max(widths)),
        height=(min(heights), median_low(heights), max(heights)),
        small=sum(min(fact.width, fact.height) < SMALL_SIDE for fact in facts),
    )


def _listed(counts: dict[str, int]) -> str:
    """`RGB 12, L 3`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())
