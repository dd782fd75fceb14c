"""`report.html` of a network for segmentation: figures, classes, and images with their masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit.data.images import ImageError, open_image
from mobilevit.models.config import ModelConfig
from mobilevit.tasks import report_sections as parts
from mobilevit.tasks.segmentation.dataset import MaskSamples, voc_palette
from mobilevit.tasks.segmentation.metrics import SegmentationMetrics, SegmentedImage
from mobilevit.tasks.visualize import draw_mask

if TYPE_CHECKING:
    # Lightning, which callbacks are made of, takes seconds to import.
    from mobilevit.training.callbacks import History

THUMBNAIL = 360
"""Long side in pixels."""
FREQUENT = 20
"""How many pairs of confused classes are listed."""


def write_segmentation_report(
    path: Path,
    result: Any,
    history: History,
    samples: MaskSamples,
    *,
    config: ModelConfig,
) -> None:
    """Write the report of a training run as one HTML file, in one step.

    Args:
        path: the file to write; an old one is replaced.
        result: how good the best weights are.
        history: the figures of epochs and steps; it may be empty.
        samples: the validation images.
        config: of the best weights: their name, source and preprocessing.

    Raises:
        OSError: the file cannot be written.
    """
    metrics, best = result.metrics, config.metrics.get("epoch")
    about = "Mean IoU, and the share of pixels that are right, on the validation images by epoch."
    figures = {"miou": "mean IoU", "pixel_accuracy": "right pixels"}
    body = (
        _headline(result, history, config),
        parts.training_section(history, best, figures=figures, about=about),
        _classes(metrics),
        _frequent(metrics),
        _gallery("What it sees", _SOME, metrics.shown, samples),
        _gallery("Worst images", _WORST, metrics.worst, samples),
    )
    parts.write_page(path, title=config.model, body=body)


_SOME = "Not chosen for how well they went. Left: the mask; right: what the model sees."
_WORST = (
    "Those with the least mean IoU over the classes in them, worst first. Masks that are wrong "
    "themselves show up here too."
)


def _headline(result: Any, history: History, config: ModelConfig) -> str:
    m = result.metrics
    tiles = [
        (
            "Mean IoU",
            parts.percent(m.miou),
            "of what the mask and the model call a class, the share that both do; the mean over "
            "classes.",
        ),
        (
            "Right pixels",
            parts.percent(m.pixel_accuracy),
            f"of {m.pixels:,} that have a class. Always naming the most frequent class would give "
            f"{parts.percent(float(m.confusion.sum(1).max()) / max(1, m.pixels))}.",
        ),
        (
            "Validation images",
            f"{m.images:,}",
            f"in {len(m.classes)} classes, evaluated at their own size. They chose the best epoch "
            "too, so expect slightly less on others.",
        ),
        (
            "Training images",
            parts.percent(result.train_metrics.miou),
            "mean IoU of the same weights on (a sample of) the images they learned from. What "
            "it is more than on validation images is learned by heart.",
        ),
        (
            "Time for an image",
            f"{m.network_ms + m.postprocess_ms:.0f} ms",
            f"{m.network_ms:.0f} ms network, {m.postprocess_ms:.0f} ms to bring its answer to the "
            "image's size, on the machine that trained.",
        ),
        *parts.pace(history, config.metrics.get("epoch")),
    ]
    return parts.headline(config.model, config.source, tiles)


def _classes(m: SegmentationMetrics) -> str:
    """The figures of each class, the worst first; those without pixels last."""
    ranked = sorted(m.per_class(), key=lambda row: (math.isnan(row.iou), row.iou))
    rows = (
        (
            f'<th scope="row">{parts.name(row.name)}</th>',
            f"<td>{parts.percent(row.pixels / max(1, m.pixels))}</td>",
            parts.bar(parts.percent(row.iou), row.iou),
            parts.bar(parts.percent(row.accuracy), row.accuracy),
        )
        for row in ranked
    )
    head = ("Class", "Share of pixels", "IoU", "Right pixels")
    return parts.section("Classes", parts.table("Classes, worst first", head, rows))


def _frequent(m: SegmentationMetrics) -> str:
    """What is taken for what, most often."""
    wrong = m.confusion.clone()
    wrong.fill_diagonal_(0)
    totals = m.confusion.sum(1).clamp(min=1)
    order = wrong.flatten().argsort(descending=True)[:FREQUENT].tolist()
    rows = []
    for place in order:
        true, seen = divmod(place, len(m.classes))
        if count := int(wrong[true, seen]):
            share = count / int(totals[true])
            rows.append(
                (
                    f'<th scope="row">{parts.name(m.classes[true])}</th>',
                    f"<td>{parts.name(m.classes[seen])}</td>",
                    f"<td>{parts.percent(count / max(1, m.pixels))}</td>",
                    parts.bar(parts.percent(share), share),
                )
            )
    if not rows:
        return parts.section("Confusions", "<p>Nothing is confused.</p>")
    head = ("Is", "Taken for", "Share of all pixels", "Share of the class")
    return parts.section("Confusions", parts.table("Most frequent confusions", head, rows))


def _gallery(
    title: str, about: str, images: tuple[SegmentedImage, ...], samples: MaskSamples
) -> str:
    cards = "".join(_card(one, samples) for one in images)
    return parts.section(title, f'<p>{about}</p><ol class="mistakes wide">{cards}</ol>')


def _card(one: SegmentedImage, samples: MaskSamples) -> str:
    """One image under its mask and under what was seen."""
    palette = voc_palette(max(256, len(samples.classes)))
    name = samples.name(one.sample)
    try:
        image, mask = open_image(samples.source(one.sample)), samples.mask(one.sample)
    except ImageError as error:
        shown = f"<p>The image cannot be read any more: {parts.name(error.reason)}</p>"
    else:
        shown = "".join(
            parts.image_tag(
                draw_mask(image, values, samples.classes, palette, longest=THUMBNAIL),
                f"{what} of {name}",
            )
            for what, values in (("Mask", mask), ("Answer", one.classes))
        )
    return (
        f"<li>{shown}<p>mean IoU {parts.percent(one.miou)}</p>"
        f"<p><small>{parts.name(name)}</small></p></li>"
    )
