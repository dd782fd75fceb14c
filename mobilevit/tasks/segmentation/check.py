"""Look at images and their masks before training on them: all that is wrong at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mobilevit.data.images import ImageError, open_image
from mobilevit.data.mask_classes import IGNORE
from mobilevit.data.validate import BadFile
from mobilevit.tasks.segmentation.dataset import MaskSamples, MaskSizeError
from mobilevit.tasks.segmentation.open import each, find_mask_splits


@dataclass(frozen=True)
class PixelCounts:
    """What the masks of a split hold, as far as they can be used."""

    images: int
    """Images with a mask, usable or not."""
    classes: dict[str, int]
    """Pixels of each class, in the order of the classes."""
    ignored: int
    """Pixels without a class."""

    @property
    def ignored_share(self) -> float:
        """Share of all pixels that is ignored; 0 where there are none."""
        return self.ignored / max(1, self.ignored + sum(self.classes.values()))


@dataclass(frozen=True)
class OutsideValues:
    """A mask with values that are no class."""

    path: Path
    values: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class MaskReport:
    """What a check of images and masks found.

    `unmatched`, `unreadable`, `sizes` and `outside` are errors: training would stop at them.
    Everything else is a warning. A folder that is no data set gets no report; `check_masks` raises.
    """

    root: Path
    note: str
    """How train and val came about."""
    train: PixelCounts
    val: PixelCounts
    unmatched: tuple[BadFile, ...]
    """Images without a mask, masks without an image, and what is listed but not there."""
    unreadable: tuple[BadFile, ...]
    """Images and masks that cannot be read."""
    sizes: tuple[BadFile, ...]
    """Masks of another size than their image."""
    outside: tuple[OutsideValues, ...]
    """Masks with values that are no class."""
    in_doubt: tuple[Path, ...]
    """Images with an EXIF orientation, and a mask that would fit turned as well as not."""
    duplicates: tuple[tuple[Path, Path], ...]
    """Images of equal bytes in train and val: they make the result look better than it is."""

    @property
    def never_in_train(self) -> tuple[str, ...]:
        """Classes without a pixel in train."""
        return tuple(name for name, count in self.train.classes.items() if not count)

    @property
    def never_in_val(self) -> tuple[str, ...]:
        """Classes without a pixel in val."""
        return tuple(name for name, count in self.val.classes.items() if not count)

    @property
    def ok(self) -> bool:
        """Whether training can run over all of it."""
        return not (self.unmatched or self.unreadable or self.sizes or self.outside)

    @property
    def exit_code(self) -> int:
        """0 where training can run over all of it, else 1."""
        return 0 if self.ok else 1

    def __str__(self) -> str:
        """Give the report as text for a person, each bad file on a line of its own."""
        return "\n".join([*self._summary(), *self._warnings(), *self._errors()])

    def _summary(self) -> Iterator[str]:
        yield f"{self.root}: {self.train.images + self.val.images} images with masks"
        yield f"  {self.note}"
        width = max(len(name) for name in (*self.train.classes, "images"))
        yield f"  {'':<{width}}  {'train':>9}  {'val':>9}"
        yield f"  {'images':<{width}}  {self.train.images:>9}  {self.val.images:>9}"
        rows = {name: (count, self.val.classes[name]) for name, count in self.train.classes.items()}
        totals = [max(1, sum(counts.classes.values())) for counts in (self.train, self.val)]
        for name, counts in rows.items():
            shares = (f"{n / total:>9.2%}" for n, total in zip(counts, totals, strict=True))
            yield f"  {name:<{width}}  {'  '.join(shares)}"
        shares = (f"{counts.ignored_share:>9.2%}" for counts in (self.train, self.val))
        yield f"  {'(ignored)':<{width}}  {'  '.join(shares)}"

    def _warnings(self) -> Iterator[str]:
        for names, where in ((self.never_in_train, "train"), (self.never_in_val, "val")):
            if names:
                yield f"warning: never in {where}: {', '.join(names)}"
        for path in self.in_doubt:
            yield (
                f"warning: {path}: is turned by its EXIF orientation, and its mask would fit "
                "either way; it is taken to lie on the upright image"
            )
        for first, second in self.duplicates:
            yield f"warning: {first} (train) and {second} (val) are the same file"

    def _errors(self) -> Iterator[str]:
        for file in (*self.unmatched, *self.unreadable, *self.sizes):
            yield f"error: {file.path}: {file.reason}"
        for mask in self.outside:
            yield f"error: {mask.path}: {mask.reason}"
        count = len(self.unmatched) + len(self.unreadable) + len(self.sizes) + len(self.outside)
        yield f"{count} files cannot be used" if count else "every image and mask can be used"


def check_masks(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    classes: Sequence[str] | None = None,
    ignore: int = IGNORE,
    val_fraction: float = 0.2,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> MaskReport:
    """Decode every image and mask of a data set, and report all that is wrong.

    Args:
        root: as for `mask_splits`, and so are `format` to `seed`.
        format: what the data set is.
        classes: names of the classes.
        ignore: value that has no class.
        val_fraction: share that is held out.
        seed: which images are.
        workers: threads; as many as the machine has processors unless given.
        progress: show a progress bar where there is a terminal.

    Raises:
        DataError: the folder is no data set; see `mask_splits`.
        ValueError: as `mask_splits`; or `workers` is less than 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    data = find_mask_splits(
        root, format=format, classes=classes, ignore=ignore, val_fraction=val_fraction, seed=seed
    )
    parts = (data.train, data.val)
    found = [
        each(partial(_examine, samples), len(samples), workers=workers, progress=progress)
        for samples in parts
    ]
    everything = [finding for findings in found for finding in findings]
    train, val = (_counted(*both) for both in zip(parts, found, strict=True))
    digests = {one.digest: one.image for one in found[0] if one.digest}
    return MaskReport(
        root=Path(root),
        note=data.note,
        train=train,
        val=val,
        unmatched=tuple(BadFile(*pair) for samples in parts for pair in samples.unmatched),
        unreadable=tuple(bad for one in everything for bad in one.unreadable),
        sizes=tuple(one.size for one in everything if one.size),
        outside=tuple(one.outside for one in everything if one.outside),
        in_doubt=tuple(one.image for one in everything if one.in_doubt),
        duplicates=tuple(
            (digests[one.digest], one.image) for one in found[1] if one.digest in digests
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What there is to say of one sample."""

    image: Path
    digest: bytes | None = None
    """Hash of the image's bytes; None where it cannot be read."""
    pixels: np.ndarray | None = None
    """int64 [classes + 1], ignored ones last; None where the mask cannot be used."""
    unreadable: tuple[BadFile, ...] = ()
    size: BadFile | None = None
    outside: OutsideValues | None = None
    in_doubt: bool = False


def _examine(samples: MaskSamples, index: int) -> _Finding:
    image, mask = samples.source(index), Path(samples.mask_name(index))
    bad: list[BadFile] = []
    digest = pixels = size = outside = None
    in_doubt = False
    try:
        open_image(image)
        digest = hashlib.blake2b(image.read_bytes(), digest_size=16).digest()
    except ImageError as error:
        bad.append(BadFile(image, error.reason))
    try:
        stored = samples.read(index)
        if digest is not None:
            in_doubt = not samples.turn(index)[1]
        values, pixels = _pixels(samples, stored)
        outside = OutsideValues(mask, values, samples.why_outside(values)) if values else None
    except MaskSizeError as error:
        size = BadFile(mask, error.reason)
    except ImageError as error:
        bad.append(BadFile(mask, error.reason))
    return _Finding(
        image=image,
        digest=digest,
        pixels=pixels,
        unreadable=tuple(bad),
        size=size,
        outside=outside,
        in_doubt=in_doubt,
    )


def _pixels(samples: MaskSamples, stored: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Values that are no class; and pixels of each class, int64 [K + 1], ignored ones last."""
    pixels = np.zeros(len(samples.classes) + 1, np.int64)
    counts = np.bincount(stored.ravel())
    present = np.flatnonzero(counts).tolist()
    for value in present:
        place = samples.values.get(value)
        if place is not None:
            pixels[min(place, len(samples.classes))] += counts[value]  # ignore is above all places
    return tuple(value for value in present if value not in samples.values), pixels


def _counted(samples: MaskSamples, findings: Sequence[_Finding]) -> PixelCounts:
    pixels = sum(
        (one.pixels for one in findings if one.pixels is not None),
        start=np.zeros(len(samples.classes) + 1, np.int64),
    )
    *counts, ignored = pixels.tolist()
    names = dict(zip(samples.classes, counts, strict=True))
    return PixelCounts(len(samples), names, ignored)
