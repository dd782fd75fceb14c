"""`mobilevit evaluate`: how good a model is on labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.checkpoints.create import opened, stated_classes
from mobilevit.checkpoints.files import replacing
from mobilevit.commands.tables import render
from mobilevit.data.check import readable
from mobilevit.data.cores import compute_device, computing_on, cores, share_cores
from mobilevit.data.datasets import FolderSamples, RelabelledSamples, Samples
from mobilevit.data.folder import evaluation_split, relabel
from mobilevit.data.loader import EvaluationLoader
from mobilevit.data.named import named_samples
from mobilevit.models.classifier import Classifier
from mobilevit.models.fuse import fuse
from mobilevit.tasks.classification import ClassificationMetrics, judge
from mobilevit.training.options import DataOptions

MAX_CONFUSION = 20
"""Up to so many classes the confusion matrix is printed."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's figures at one or several picture sizes."""

    model: str
    by_size: dict[int, ClassificationMetrics]
    """Crop in pixels -> figures."""

    @property
    def metrics(self) -> ClassificationMetrics:
        """The figures, where there is one size.

        Raises:
            ValueError: there are several.
        """
        if len(self.by_size) != 1:
            raise ValueError(f"evaluated at {len(self.by_size)} sizes: choose one of by_size")
        return next(iter(self.by_size.values()))

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        sizes = {}
        for size, metrics in self.by_size.items():
            values = asdict(metrics)
            values["confusion"] = metrics.confusion.tolist()
            values["per_class"] = [row._asdict() for row in metrics.per_class()]
            sizes[str(size)] = values
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        """Tables: figures by size, then classes and confusion of the last size."""
        parts: list[Any] = [_by_size(self.by_size)]
        metrics = list(self.by_size.values())[-1]
        parts.append(_per_class(metrics))
        if len(metrics.classes) <= MAX_CONFUSION:
            parts.append(_confusion(metrics))
        return render(*parts)


def evaluate(
    model: str | Path | Classifier,
    *,
    data: DataOptions,
    sizes: Sequence[int] | None = None,
    classes: str | Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    out: str | None = None,
) -> Evaluation:
    """Judge a classifier on a folder of class folders; every picture counts once.

    Where the folder has a val/ beside its train/, that is judged; else all of it. The folders'
    names must be class names of the model; the model may have more classes than the folder.

    Args:
        model: a model folder, an authors' checkpoint or a timm one; in Python also a network.
        data: where the pictures are.
        sizes: picture sizes (crops) in pixels; by default the model's own. The margin around the
            crop keeps its share.
        classes: class names in the order of the logits, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as channel_order.
        batch_size: pictures at a time.
        threads: compute threads on a CPU; by default from the number of cores.
        device: where to compute; auto takes a GPU where there is one.
        out: JSON file to write all figures to.

    Raises:
        DataError: the pictures can not be used; the message names which and why.
        CheckpointError: the model can not be read.
        ValueError: the model's classes are not known.
    """
    network, name = opened(model, classes=classes, preprocessing=preprocessing)
    known = stated_classes(network, name)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)  # now, not after the work
    on = compute_device(device)
    default_threads, default_workers = share_cores(cores(), on_gpu=on.type != "cpu")
    workers = default_workers if data.workers is None else data.workers
    samples = _samples(data, known)
    fused = fuse(network).to(on)
    by_size = {}
    with computing_on(threads or default_threads):
        for size in sizes or [network.config.preprocessing.crop]:
            rule = network.config.preprocessing.at(size)
            loader = EvaluationLoader(samples, rule, batch_size=batch_size, workers=workers)
            by_size[size] = judge(fused, loader, classes=known, device=on)
    result = Evaluation(model=name, by_size=by_size)
    if out is not None:
        with replacing(Path(out)) as fresh:
            fresh.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    return result


def _samples(data: DataOptions, classes: tuple[str, ...]) -> Samples:
    if data.name is not None:
        return RelabelledSamples(named_samples(data.name, data.root)[1], classes)
    split = relabel(evaluation_split(data.root), classes)
    if data.check or data.on_bad == "skip":
        (split,) = readable(split, on_bad=data.on_bad)
    return FolderSamples(split)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table


def _by_size(by_size: dict[int, ClassificationMetrics]) -> Table:
    table = _table("size", "pictures", "top-1", "top-5", "loss", "calibration error")
    for size, m in by_size.items():
        table.add_row(
            f"{size} px",
            str(m.samples),
            f"{m.top1:.2%}",
            f"{m.top5:.2%}",
            f"{m.loss:.4f}",
            f"{m.calibration_error:.4f}",
        )
    return table


def _per_class(metrics: ClassificationMetrics) -> Table:
    table = _table("class", "pictures", "right", "recall", "precision", "F1")
    for row in metrics.per_class():
        table.add_row(
            escape(row.name),
            str(row.samples),
            str(row.right),
            *(
                "-" if value != value else f"{value:.1%}"
                for value in (row.recall, row.precision, row.f1)
            ),
        )
    return table


def _confusion(metrics: ClassificationMetrics) -> Table:
    table = _table("label / answer", *(str(number) for number in range(len(metrics.classes))))
    for number, name in enumerate(metrics.classes):
        counts = metrics.confusion[number].tolist()
        table.add_row(f"{number} {escape(name)}", *(str(count or "·") for count in counts))
    return table
