"""Validation of shards: whether they are complete and their images readable."""

from __future__ import annotations

from functools import partial
from itertools import chain

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Issue
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.shards.open import open_splits
from mobilevit.data.shards.samples import Shard
from mobilevit.data.validate import UNREADABLE_IMAGES, Report, SplitSummary, map_parallel
from mobilevit.utils.devices import available_cores


def check_shards(root: str, *, workers: int | None = None, quick: bool = False) -> Report:
    """Read all shards, compare tars with the digests in their index, and decode the images.

    Args:
        root: as for `shard_splits`.
        workers: threads that read; by default as many as there are cores.
        quick: do not decode.

    Raises:
        DataError: there is no index, or it does not list the shards.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    summaries: dict[str, SplitSummary] = {}
    issues: list[Issue] = []
    for split, samples in open_splits(root).items():
        counts = np.bincount(samples.labels, minlength=len(samples.classes)).tolist()
        look = partial(_shard_issues, quick=quick)
        found = list(
            chain.from_iterable(map_parallel(look, samples.images.shards, workers=workers))
        )
        classes = dict(zip(samples.classes, counts, strict=True))
        unreadable = sum(issue.category == UNREADABLE_IMAGES for issue in found)
        summaries[split] = SplitSummary(len(samples), unreadable, classes)
        issues += found
    return Report(
        root=root,
        note="shards: all read" + ("" if quick else ", and every image decoded"),
        depth="annotations" if quick else "decode",
        unit="images",
        splits=summaries,
        issues=tuple(issues),
    )


def _shard_issues(shard: Shard, *, quick: bool) -> list[Issue]:
    issues = []
    try:
        if problem := shard.problem(quick=False):
            raise DataError(problem)
        for position, data in enumerate(() if quick else shard.read()):
            try:
                open_image(data)
            except ImageError as error:
                issues.append(Issue(UNREADABLE_IMAGES, shard.name(position), error.reason))
    except DataError as error:
        where, _, reason = str(error).partition(": ")
        issues.append(Issue("shards", where, reason, skippable=False))
    return issues
