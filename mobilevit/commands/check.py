"""`mobilevit check`: look at a data set before training on it."""

from __future__ import annotations

import os
from typing import TypeAlias

from mobilevit.data.class_names import class_names
from mobilevit.data.shards.open import is_sharded
from mobilevit.data.shards_check import ShardReport, check_shards
from mobilevit.data.validate import CheckReport
from mobilevit.data.validate import check as check_images
from mobilevit.models.config import TaskName
from mobilevit.tasks.detection.check import BoxReport, check_boxes
from mobilevit.tasks.segmentation.check import MaskReport, check_masks

AnyReport: TypeAlias = CheckReport | BoxReport | MaskReport | ShardReport


def check(
    root: str | os.PathLike[str],
    *,
    task: TaskName = "classification",
    format: str = "auto",
    classes: str | None = None,
    ignore: int = 255,
    workers: int | None = None,
    quick: bool = False,
    progress: bool = True,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> AnyReport:
    """Examine every image of a data set, and what is said of it; report all that is wrong.

    Args:
        root: the data set, as for `train`.
        task: what it is to be trained for.
        format: detection and segmentation: coco, voc, ..., where the folder could be read in
            several ways.
        classes: segmentation: names of the masks' values, with commas between or in a file.
        ignore: segmentation: the value of pixels without a class.
        workers: threads; by default as many as there are cores.
        quick: read headers and file ends instead of decoding all. Finds what is no image, empty,
            cut off or too large; not what is damaged within, and no duplicates.
        progress: show a progress bar where there is a terminal.
        val_fraction: share that is held out where the data set names nothing to evaluate by.
        seed: of that choice.

    Raises:
        DataError: there is no data set of this kind.
        ValueError: an option out of its range.
    """
    if task == "detection":
        return check_boxes(
            root,
            format=format,
            workers=workers,
            quick=quick,
            progress=progress,
            val_fraction=val_fraction,
            seed=seed,
        )
    if task == "segmentation":
        return check_masks(
            root,
            format=format,
            classes=class_names(classes),
            ignore=ignore,
            workers=workers,
            progress=progress,
            val_fraction=val_fraction,
            seed=seed,
        )
    if is_sharded(os.fspath(root)):
        return check_shards(os.fspath(root), workers=workers, quick=quick)
    return check_images(
        root,
        workers=workers,
        quick=quick,
        progress=progress,
        val_fraction=val_fraction,
        seed=seed,
    )
