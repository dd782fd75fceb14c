"""The report of a segmentation network's training."""

from collections.abc import Sequence

from PIL import Image

from mobilevit.models.config import ModelConfig
from mobilevit.tasks.report import (
    Gallery,
    Line,
    TaskReport,
    Tile,
    class_table,
    frequent_confusions,
    gallery,
    image_tiles,
    percent,
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
        sections={
            "Classes": [class_table(metrics.per_class, "iou", percent)],
            "Confusions": [confusions],
            "Predictions": [shown, _gallery(metrics.shown, samples)],
            "Worst images": [worst, _gallery(metrics.worst, samples)],
        },
    )


def _tiles(m: SegmentationMetrics, train: SegmentationMetrics) -> list[Tile]:
    majority = float(m.confusion.sum(1).max()) / max(1, m.pixels)
    about = f"in {len(m.classes)} classes, evaluated at their own size"
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
        *image_tiles(m.images, about, "mean IoU", percent(train.miou)),
        timing_tile(m.network_ms, m.postprocess_ms, "to resize outputs to the image"),
    ]


def _gallery(images: Sequence[SegmentedImage], samples: MaskSamples) -> Gallery:
    palette = palette_of(tuple(samples.classes))

    def draw(one: SegmentedImage, image: Image.Image) -> list[tuple[Image.Image, str]]:
        masks = {"Mask": samples.mask(one.sample), "Prediction": one.classes}
        return [
            (
                draw_mask(image, mask, samples.classes, palette, longest=THUMBNAIL),
                f"{what} of {samples.name(one.sample)}",
            )
            for what, mask in masks.items()
        ]

    def lines(one: SegmentedImage) -> list[Line]:
        return [Line(f"mean IoU {percent(one.miou)}")]

    return gallery(samples, images, draw, lines, wide=True)
