"""The report of a segmentation network's training."""

from collections.abc import Sequence

from PIL import Image

from mobilevit.models.config import ModelConfig
from mobilevit.tasks.report import (
    Block,
    Card,
    Gallery,
    Line,
    Section,
    TaskReport,
    Tile,
    class_table,
    frequent_confusions,
    image_tiles,
    percent,
    percent_bar,
    sample_card,
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
    classes = class_table(metrics.per_class, "iou", percent_bar)
    confusions = frequent_confusions(metrics.classes, metrics.confusion, "Pixels")
    return TaskReport(
        tiles=_tiles(metrics, train_metrics),
        figures={"miou": "mean IoU", "pixel_accuracy": "correct pixels"},
        about_figures="Mean IoU and the share of correct pixels on the validation images by epoch.",
        sections=(
            Section(title="Classes", blocks=[classes]),
            Section(title="Confusions", blocks=[confusions]),
            Section(title="Predictions", blocks=_gallery(shown, metrics.shown, samples)),
            Section(title="Worst images", blocks=_gallery(worst, metrics.worst, samples)),
        ),
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


def _gallery(about: str, images: Sequence[SegmentedImage], samples: MaskSamples) -> list[Block]:
    palette = palette_of(tuple(samples.classes))

    def card(one: SegmentedImage) -> Card:
        def draw(image: Image.Image) -> list[tuple[Image.Image, str]]:
            masks = {"Mask": samples.mask(one.sample), "Prediction": one.classes}
            return [
                (
                    draw_mask(image, mask, samples.classes, palette, longest=THUMBNAIL),
                    f"{what} of {samples.name(one.sample)}",
                )
                for what, mask in masks.items()
            ]

        return sample_card(samples, one.sample, draw, Line(f"mean IoU {percent(one.miou)}"))

    return [about, Gallery(cards=[card(one) for one in images], wide=True)]
