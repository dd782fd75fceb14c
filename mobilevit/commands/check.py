"""`mobilevit check`: look at a data set before training on it."""

import os

from mobilevit.data.open import check_dataset
from mobilevit.data.options import DataOptions
from mobilevit.data.validate import Report
from mobilevit.models.config import TaskName
from mobilevit.tasks import check_data_options, get_task


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
) -> Report:
    """Examine all images of a data set and their annotations, and report everything that is wrong.

    What `train` refuses is an error here, by the same validation.

    Args:
        root: the data set, as for `train`.
        task: what it is to be trained for.
        format: coco, voc, ..., where the folder could be read in several ways.
        classes: segmentation: names of the masks' values, with commas between or in a file.
        ignore: segmentation: the value of pixels without a class.
        workers: threads; by default as many as there are cores.
        quick: read headers and file ends instead of decoding all. Finds what is no image, empty,
            cut off or too large; not what is damaged within, and no duplicates.
        progress: show a progress bar where there is a terminal.
        val_fraction: share that is held out where the data set has no split to evaluate on.
        seed: of that choice.

    Raises:
        DataError: there is no data set for this task.
        ValueError: an option is out of range.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from PIL import Image
    >>> photos = Path(mkdtemp())
    >>> for number, name in enumerate(["cat", "cat", "dog", "dog"]):
    ...     (photos / name).mkdir(exist_ok=True)
    ...     Image.new("RGB", (64, 48), (number, 0, 0)).save(photos / name / f"{number}.png")
    >>> report = check(photos)
    >>> report.ok, report.splits["train"].classes
    (True, {'cat': 1, 'dog': 1})
    """
    data = DataOptions(
        root=os.fspath(root),
        format=format,
        classes=classes,
        ignore=ignore,
        val_fraction=val_fraction,
    )
    selected = get_task(task)
    check_data_options(data, selected)
    return check_dataset(
        selected.samples_type, data, seed=seed, quick=quick, workers=workers, progress=progress
    )
