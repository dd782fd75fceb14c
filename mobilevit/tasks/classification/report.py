"""The report of a classifier's training."""

from __future__ import annotations

import math

from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import frame_image
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.tasks.classification.dataset import ClassificationSamples
from mobilevit.tasks.classification.metrics import ClassificationMetrics, Mistake
from mobilevit.tasks.report import (
    Block,
    Card,
    ConfusionMatrix,
    Gallery,
    Line,
    Name,
    Section,
    Table,
    TaskReport,
    Tile,
    frequent_confusions,
    number,
    percent,
    percent_bar,
)

COUNTED = 20
"""For more classes, the frequent confusions are listed too."""
THUMBNAIL = 192
"""Long side in pixels."""
GAP = 5.0
"""Gap to training images, in points, that counts as overfitting."""


def make_report(
    metrics: ClassificationMetrics,
    train_metrics: ClassificationMetrics,
    samples: ClassificationSamples,
    config: ModelConfig,
) -> TaskReport:
    """Tiles, confusion matrix, classes and the worst mistakes."""
    return TaskReport(
        tiles=_tiles(metrics, train_metrics, config.preprocessing.crop),
        figures={"top1": "top-1"},
        about_figures="Top-1 by epoch. Training is measured while the network learns, on augmented "
        "images, and may therefore be below validation.",
        sections=(
            Section(title="Confusion matrix", blocks=_confusion(metrics)),
            Section(title="Classes", blocks=_classes(metrics)),
            Section(title="Worst mistakes", blocks=_mistakes(metrics, samples, config)),
        ),
    )


def _tiles(
    metrics: ClassificationMetrics, train_metrics: ClassificationMetrics, side: int
) -> list[Tile]:
    low, high = _interval(metrics.top1, metrics.images)
    majority = int(metrics.confusion.sum(1).max()) / metrics.images
    tiles = [
        Tile(
            "Top-1",
            percent(metrics.top1),
            f"of the validation images are classified correctly. The 95% interval for so many "
            f"images is {percent(low)} to {percent(high)}; always predicting the most frequent "
            f"class would give {percent(majority)}.",
        )
    ]
    if len(metrics.classes) > 5:
        text = "have the correct class among the five most probable."
        tiles.append(Tile("Top-5", percent(metrics.top5), text))
    gap = 100 * (train_metrics.top1 - metrics.top1)
    return [
        *tiles,
        Tile(
            "Calibration error",
            number(metrics.calibration_error),
            f"The predicted probability is off by {number(100 * metrics.calibration_error, 1)} "
            "points on average.",
        ),
        Tile(
            "Validation images",
            f"{metrics.images:,}",
            f"in {len(metrics.classes)} classes, at {side} × {side} pixels. The best epoch was "
            "selected on them, so expect slightly less on others.",
        ),
        Tile(
            "Training images",
            percent(train_metrics.top1),
            "top-1 of the same weights on (a sample of) the training images, preprocessed in the "
            "same way.",
        ),
        Tile("Gap", f"{gap:+.1f} points", _meaning(gap, low <= train_metrics.top1 <= high)),
    ]


def _meaning(gap: float, within_interval: bool) -> str:
    if within_interval:
        text = "within the interval of the validation images: no sign of overfitting."
    elif gap < 0:
        text = (
            "the model is better on images it was not trained on; the validation images may be "
            "easier, or copies of training images."
        )
    elif gap < GAP:
        text = "small: the model generalizes."
    else:
        text = (
            "overfitting. More images, stronger augmentation or fewer epochs make the gap smaller."
        )
    return f"training minus validation: {text}"


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` images."""
    z = 1.96
    centre = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def _confusion(metrics: ClassificationMetrics) -> list[Block]:
    about = (
        "Rows: labels; columns: predictions. Blue is correct, orange wrong; the stronger, the "
        "larger the share of its row (its square root, so that rare ones show)."
    )
    matrix = ConfusionMatrix(classes=metrics.classes, counts=metrics.confusion.numpy())
    if len(metrics.classes) <= COUNTED:
        return [about, matrix]
    return [about, matrix, frequent_confusions(metrics.classes, metrics.confusion, "Images")]


def _classes(metrics: ClassificationMetrics) -> list[Block]:
    about = (
        "Recall: of the images of a class, the share that is predicted as it. Precision: of the "
        "images predicted as a class, the share that is of it. F1 is their harmonic mean."
    )
    ranked = sorted(metrics.per_class, key=lambda row: (math.isnan(row.recall), row.recall))
    rows = [
        (
            Name(row.name),
            f"{row.images:,}",
            percent_bar(row.recall),
            percent_bar(row.precision),
            percent_bar(row.f1),
        )
        for row in ranked
    ]
    columns = ("Class", "Images", "Recall", "Precision", "F1")
    return [about, Table(title="Classes, lowest recall first", columns=columns, rows=rows)]


def _mistakes(
    metrics: ClassificationMetrics, samples: ClassificationSamples, config: ModelConfig
) -> list[Block]:
    if not metrics.mistakes:
        return ["There are none."]
    wrong = metrics.images - int(metrics.confusion.diag().sum())
    about = (
        f"{len(metrics.mistakes)} of {wrong:,}, worst first, as the network saw them. Wrong labels "
        "show up here too."
    )
    cards = [_card(mistake, metrics, samples, config.preprocessing) for mistake in metrics.mistakes]
    return [about, Gallery(cards=cards)]


def _card(
    mistake: Mistake,
    metrics: ClassificationMetrics,
    samples: ClassificationSamples,
    preprocessing: Preprocessing,
) -> Card:
    label, predicted = metrics.classes[mistake.label], metrics.classes[mistake.predicted]
    images, error = [], ""
    try:
        image = frame_image(open_image(samples.source(mistake.sample)), preprocessing)
    except ImageError as unreadable:
        error = unreadable.reason
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        images = [(image, f"{label}, predicted as {predicted}")]
    lines = (
        Line("is", label),
        Line("predicted as", predicted, f", {percent(mistake.probability)}"),
        Line(f"loss {number(mistake.loss, 2)}"),
    )
    return Card(images=images, error=error, lines=lines, file=samples.name(mistake.sample))
