"""The report of a classifier's training."""

from PIL import Image

from mobilevit.data.preprocessing import frame_image
from mobilevit.data.splits import LabelSamples
from mobilevit.models.config import ModelConfig
from mobilevit.tasks.classification.metrics import ClassificationMetrics, Mistake
from mobilevit.tasks.report import (
    Block,
    ConfusionMatrix,
    Line,
    TaskReport,
    Tile,
    class_table,
    frequent_confusions,
    gallery,
    image_tiles,
    number,
    percent,
)

THUMBNAIL = 192
"""Long side in pixels."""


def make_report(
    metrics: ClassificationMetrics,
    train_metrics: ClassificationMetrics,
    samples: LabelSamples,
    config: ModelConfig,
) -> TaskReport:
    """Tiles, confusion matrix, classes and the worst mistakes."""
    classes: list[Block] = [
        "Recall: of the images of a class, the share that is predicted as it. Precision: of the "
        "images predicted as a class, the share that is of it. F1 is their harmonic mean.",
        class_table(metrics.per_class, "recall", percent),
    ]
    return TaskReport(
        tiles=_tiles(metrics, train_metrics, config.preprocessing.crop),
        figures={"top1": "top-1"},
        about_figures="Top-1 by epoch. Training is measured while the network learns, on augmented "
        "images, and may therefore be below validation.",
        sections={
            "Confusion matrix": _confusion(metrics),
            "Classes": classes,
            "Worst mistakes": _mistakes(metrics, samples, config),
        },
    )


def _tiles(m: ClassificationMetrics, train: ClassificationMetrics, side: int) -> list[Tile]:
    from scipy.stats import binomtest  # here, because it takes a second

    low, high = binomtest(round(m.top1 * m.images), m.images).proportion_ci(method="wilson")
    majority = int(m.confusion.sum(1).max()) / m.images
    tiles = [
        Tile(
            "Top-1",
            percent(m.top1),
            f"of the validation images are classified correctly. The 95% interval for so many "
            f"images is {percent(low)} to {percent(high)}; always predicting the most frequent "
            f"class would give {percent(majority)}.",
        ),
        Tile("Top-5", percent(m.top5), "have the correct class among the five most probable."),
        Tile(
            "Calibration error",
            number(m.calibration_error),
            f"The predicted probability is off by {number(100 * m.calibration_error, 1)} points on "
            "average.",
        ),
    ]
    if len(m.classes) <= 5:
        del tiles[1]
    about = f"in {len(m.classes)} classes, at {side} × {side} pixels"
    return [*tiles, *image_tiles(m.images, about, "top-1", percent(train.top1))]


def _confusion(metrics: ClassificationMetrics) -> list[Block]:
    about = (
        "Rows: labels; columns: predictions. Blue is correct, orange wrong; the stronger, the "
        "larger the share of its row (its square root, so that rare ones show)."
    )
    matrix = ConfusionMatrix(classes=metrics.classes, counts=metrics.confusion.numpy())
    return [about, matrix, frequent_confusions(metrics.classes, metrics.confusion, "Images")]


def _mistakes(
    metrics: ClassificationMetrics, samples: LabelSamples, config: ModelConfig
) -> list[Block]:
    if not metrics.mistakes:
        return ["There are none."]
    wrong = metrics.images - int(metrics.confusion.diag().sum())
    about = (
        f"{len(metrics.mistakes)} of {wrong:,}, worst first, as the network saw them. Wrong labels "
        "show up here too."
    )

    def names(mistake: Mistake) -> tuple[str, str]:
        return metrics.classes[mistake.label], metrics.classes[mistake.predicted]

    def draw(mistake: Mistake, image: Image.Image) -> list[tuple[Image.Image, str]]:
        image = frame_image(image, config.preprocessing)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return [(image, "{}, predicted as {}".format(*names(mistake)))]

    def lines(mistake: Mistake) -> list[Line]:
        label, predicted = names(mistake)
        return [
            Line("is", label),
            Line("predicted as", predicted, f", {percent(mistake.probability)}"),
            Line(f"loss {number(mistake.loss, 2)}"),
        ]

    return [about, gallery(samples, metrics.mistakes, draw, lines)]
