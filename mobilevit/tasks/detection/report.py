"""The report of a detector's training."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mobilevit.models.config import ModelConfig
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.detection.metrics import DetectionMetrics, ImageResult
from mobilevit.tasks.report import (
    Bar,
    Block,
    Curve,
    Gallery,
    Line,
    Plot,
    Table,
    TaskReport,
    Tile,
    class_table,
    gallery,
    image_tiles,
    number,
    timing_tile,
)
from mobilevit.tasks.visualize import DrawnBox, draw_boxes

THUMBNAIL = 420
"""Long side in pixels."""
CURVES = 10
"""Up to so many classes each have a curve; of more, only the mean and the weakest."""
CORRECT, WRONG, TRUE = (59, 130, 246), (217, 119, 6), (34, 197, 94)
"""Colours of correct, wrong and true boxes."""


def make_report(
    metrics: DetectionMetrics,
    train_metrics: DetectionMetrics,
    samples: BoxSamples,
    config: ModelConfig,
) -> TaskReport:
    """Tiles, curves, sizes, classes, and images with true and predicted boxes."""
    shown = (
        "Evenly spaced in the validation set. Green dashes: true boxes. Blue: correct predictions. "
        "Orange: wrong predictions."
    )
    worst = (
        f"Those with most boxes missed or wrong at a score of {metrics.threshold:.2f}, worst "
        "first. Wrong and missing annotations show up here too."
    )
    return TaskReport(
        tiles=_tiles(metrics, train_metrics, config.preprocessing.crop),
        figures={"ap": "AP", "ap50": "AP50"},
        about_figures="COCO's average precision on the validation images by epoch.",
        sections={
            "Precision and recall": [_curves(metrics)],
            "Sizes": [_sizes(metrics)],
            "Classes": [class_table(metrics.per_class, "ap", number)],
            "True and predicted boxes": [shown, _gallery(metrics.shown, metrics, samples)],
            "Worst images": [worst, _gallery(metrics.worst, metrics, samples)],
        },
    )


def _tiles(m: DetectionMetrics, train: DetectionMetrics, side: int) -> list[Tile]:
    about = f"with {m.boxes:,} boxes of {len(m.classes)} classes, at {side} × {side} pixels"
    return [
        Tile(
            "AP",
            number(m.ap),
            "COCO's average precision: the mean over classes and IoU thresholds from 0.50 to 0.95.",
        ),
        Tile("AP50", number(m.ap50), "at an IoU threshold of 0.5."),
        Tile("AP75", number(m.ap75), "at an IoU threshold of 0.75."),
        Tile("At a score of", number(m.threshold, 2), m.balance),
        *image_tiles(m.images, about, "AP", number(train.ap)),
        timing_tile(m.network_ms, m.postprocess_ms, "decoding and suppression"),
    ]


def _curves(m: DetectionMetrics) -> Block:
    recall = np.linspace(0, 1, m.curves.shape[1]).tolist()
    ranked = sorted(
        (row for row in range(len(m.classes)) if not np.isnan(m.curves[row]).any()),
        key=lambda row: m.per_class[row].ap50,
    )
    if not ranked:
        return "There are no boxes to find."
    shown = ranked if len(ranked) <= CURVES else ranked[: CURVES // 2]
    curves = [
        Curve(m.classes[row], recall, m.curves[row].tolist(), _shade(place, len(shown)))
        for place, row in enumerate(shown)
    ]
    curves.append(Curve("mean", recall, m.curves[ranked].mean(axis=0).tolist(), dashed=True))
    which = "" if len(shown) == len(ranked) else f" Shown are the {len(shown)} weakest classes."
    return Plot(
        curves=curves,
        x="recall",
        y="precision",
        name="pr",
        percent=True,
        alt="Precision against recall for each class",
        caption="Precision at each recall, at an IoU threshold of 0.5. A curve that drops early "
        f"belongs to a class of which many objects are never found.{which}",
    )


def _shade(place: int, count: int) -> str:
    """Colours from orange to blue, weakest class first."""
    share = place / max(1, count - 1)
    mixed = [round(a + share * (b - a)) for a, b in zip(WRONG, CORRECT, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _sizes(m: DetectionMetrics) -> Table:
    sizes = (
        ("small", "area below 32² pixels", m.ap_small, m.ar_small),
        ("medium", "up to 96²", m.ap_medium, m.ar_medium),
        ("large", "larger", m.ap_large, m.ar_large),
    )
    return Table(
        title="AP by size",
        columns=("Size", "In the image's own pixels", "AP", "Recall, at most 100 boxes"),
        rows=[
            (name, about, *(Bar(number(value), value) for value in values))
            for name, about, *values in sizes
        ],
    )


def _gallery(images: Sequence[ImageResult], m: DetectionMetrics, samples: BoxSamples) -> Gallery:
    def draw(one: ImageResult, image: Image.Image) -> list[tuple[Image.Image, str]]:
        columns = (part.tolist() for part in (*one.found, one.correct))
        boxes = [
            DrawnBox(corners, f"{m.classes[label]} {score:.0%}", CORRECT if correct else WRONG)
            for corners, score, label, correct in zip(*columns, strict=True)
        ]
        annotation = samples.annotation(one.sample)
        true = annotation.boxes[~annotation.crowd].tolist()
        boxes += [DrawnBox(corners, "", TRUE, dashed=True) for corners in true]
        drawn = draw_boxes(image, boxes, longest=THUMBNAIL)
        return [(drawn, f"Boxes in {samples.name(one.sample)}")]

    def lines(one: ImageResult) -> list[Line]:
        correct, wrong = int(one.correct.sum()), int((~one.correct).sum())
        return [Line(f"{correct} correct, {one.missed} missed, {wrong} wrong")]

    return gallery(samples, images, draw, lines, wide=True)
