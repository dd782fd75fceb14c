"""The report of a segmentation network's training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mobilevit.data.images import ImageError, open_image
from mobilevit.models.config import ModelConfig
from mobilevit.tasks.report import (
    Block,
    Card,
    Gallery,
    Line,
    Name,
    Section,
    Table,
    TaskReport,
    Tile,
    frequent_confusions,
    percent,
    percent_bar,
    timing_tile,
)
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.metrics import SegmentationMetrics, SegmentedImage
from mobilevit.tasks.segmentation.results import palette_of
from mobilevit.tasks.visualize import draw_mask

THUMBNAIL = 360
"""Long side in pixels."""


def make_report(
    metrics: SegmentationMetrics,
    train_metrics: SegmentationMetrics,
    samples: MaskSamples,
    config: ModelConfig,
) -> TaskReport:
    """Tiles, classes, confusions, and images with true and predicted masks."""
    shown = "Evenly spaced in the validation set. Left: the true mask; right: the prediction."
    worst = (
        "Those with the lowest mean IoU over the classes in them, worst first. Wrong masks show up "
        "here too."
    )
    confusions = frequent_confusions(metrics.classes, metrics.confusion, "Pixels")
    return TaskReport(
        tiles=_tiles(metrics, train_metrics),
        figures={"miou": "mean IoU", "pixel_accuracy": "correct pixels"},
        about_figures="Mean IoU and the share of correct pixels on the validation images by epoch.",
        sections=(
            Section(title="Classes", blocks=[_classes(metrics)]),
            Section(title="Confusions", blocks=[confusions]),
            Section(title="Predictions", blocks=_gallery(shown, metrics.shown, samples)),
            Section(title="Worst images", blocks=_gallery(worst, metrics.worst, samples)),
        ),
    )


def _tiles(m: SegmentationMetrics, train: SegmentationMetrics) -> list[Tile]:
    majority = float(m.confusion.sum(1).max()) / max(1, m.pixels)
    return [
        Tile(
            "Mean IoU",
            percent(m.miou),
            "of the pixels that are labelled or predicted as a class, the share that is both; the "
            "mean over classes.",
        ),
        Tile(
            "Correct pixels",
            percent(m.pixel_accuracy),
            f"of {m.pixels:,} that have a class. Always predicting the most frequent class would "
            f"give {percent(majority)}.",
        ),
        Tile(
            "Validation images",
            f"{m.images:,}",
            f"in {len(m.classes)} classes, evaluated at their own size. The best epoch was "
            "selected on them, so expect slightly less on others.",
        ),
        Tile(
            "Training images",
            percent(train.miou),
            "mean IoU of the same weights on (a sample of) the training images. What it is above "
            "that of validation is overfitting.",
        ),
        timing_tile(m.network_ms, m.postprocess_ms, "to resize outputs to the image"),
    ]


def _classes(m: SegmentationMetrics) -> Table:
    ranked = sorted(m.per_class, key=lambda row: (math.isnan(row.iou), row.iou))
    return Table(
        title="Classes, worst first",
        columns=("Class", "Share of pixels", "IoU", "Correct pixels"),
        rows=[
            (
                Name(row.name),
                percent(row.pixels / max(1, m.pixels)),
                percent_bar(row.iou),
                percent_bar(row.accuracy),
            )
            for row in ranked
        ],
    )


def _gallery(about: str, images: Sequence[SegmentedImage], samples: MaskSamples) -> list[Block]:
    return [about, Gallery(cards=[_card(one, samples) for one in images], wide=True)]


def _card(one: SegmentedImage, samples: MaskSamples) -> Card:
    palette, name = palette_of(len(samples.classes)), samples.name(one.sample)
    images, error = [], ""
    try:
        image, mask = open_image(samples.source(one.sample)), samples.mask(one.sample)
    except ImageError as unreadable:
        error = unreadable.reason
    else:
        images = [
            (
                draw_mask(image, values, samples.classes, palette, longest=THUMBNAIL),
                f"{what} of {name}",
            )
            for what, values in (("Mask", mask), ("Prediction", one.classes))
        ]
    lines = [Line(f"mean IoU {percent(one.miou)}")]
    return Card(images=images, error=error, lines=lines, file=name)
