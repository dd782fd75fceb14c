"""`report.html` of a detector: COCO's figures, curves, and images with true and found boxes."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevit.data.images import ImageError, open_image
from mobilevit.models.config import ModelConfig
from mobilevit.tasks import report_sections as parts
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.detection.metrics import DetectionMetrics, ImageResult
from mobilevit.tasks.visualize import DrawnBox, draw_boxes
from mobilevit.training.plots import VALIDATION, Curve, svg

if TYPE_CHECKING:
    # Lightning, which callbacks are made of, takes seconds to import.
    from mobilevit.training.callbacks import History

THUMBNAIL = 420
"""Long side in pixels."""
CURVES = 10
"""Up to so many classes each has a curve of its own; of more, the mean and the worst."""
FOUND, WRONG, TRUE = (59, 130, 246), (217, 119, 6), (34, 197, 94)
"""Colours of right boxes, wrong ones, and true ones."""


def write_detection_report(
    path: Path,
    result: Any,
    history: History,
    samples: BoxSamples,
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
    about = "COCO's average precision on the validation images by epoch."
    body = (
        _headline(result, history, config),
        parts.training_section(history, best, figures={"ap": "AP", "ap50": "AP50"}, about=about),
        _curves(metrics),
        _sizes(metrics),
        _classes(metrics),
        _some(metrics, samples),
        _worst(metrics, samples),
    )
    parts.write_page(path, title=config.model, body=body)


def _headline(result: Any, history: History, config: ModelConfig) -> str:
    m, side = result.metrics, config.preprocessing.crop
    tiles = [
        (
            "AP",
            parts.number(m.ap),
            "COCO's average precision: the mean over classes and over overlaps from 0.50 to 0.95.",
        ),
        ("AP50", parts.number(m.ap50), "counting a box as found that overlaps it by half."),
        ("AP75", parts.number(m.ap75), "counting only boxes that overlap by three quarters."),
        (
            "At a score of",
            parts.number(m.threshold, 2),
            f"precision and recall balance best (overlap 0.5): {parts.percent(m.precision)} of the "
            f"boxes found are right, and {parts.percent(m.recall)} of all are found.",
        ),
        (
            "Validation images",
            f"{m.images:,}",
            f"with {m.boxes:,} boxes of {len(m.classes)} classes, seen at {side} × {side} pixels. "
            "They chose the best epoch too, so expect slightly less on others.",
        ),
        (
            "Training images",
            parts.number(result.train_metrics.ap),
            "AP of the same weights on (a sample of) the images they learned from. What it is "
            "more than on validation images is learned by heart.",
        ),
        (
            "Time for an image",
            f"{m.network_ms + m.postprocess_ms:.1f} ms",
            f"{m.network_ms:.1f} ms network, {m.postprocess_ms:.1f} ms decoding and suppression, "
            "in batches, on the machine that trained.",
        ),
        *parts.pace(history, config.metrics.get("epoch")),
    ]
    return parts.headline(config.model, config.source, tiles)


def _curves(m: DetectionMetrics) -> str:
    """Precision against recall."""
    recall = np.linspace(0, 1, m.curves.shape[1]).tolist()
    ranked = sorted(
        (row for row in range(len(m.classes)) if not np.isnan(m.curves[row]).any()),
        key=lambda row: m.per_class[row].ap50,
    )
    if not ranked:
        return parts.section("Precision and recall", "<p>There are no boxes to find.</p>")
    shown = ranked if len(ranked) <= CURVES else ranked[: CURVES // 2]
    lines = [
        Curve(m.classes[row], recall, m.curves[row].tolist(), _shade(place, len(shown)))
        for place, row in enumerate(shown)
    ]
    mean = m.curves[ranked].mean(axis=0).tolist()
    lines.append(Curve("mean", recall, mean, VALIDATION, dashed=True))
    which = "" if len(shown) == len(ranked) else f" Shown are the {len(shown)} weakest classes."
    image = svg(lines, x="recall", y="precision", name="pr", percent=True)
    caption = (
        "Precision at each recall, counting boxes that overlap by half. A curve that drops early "
        f"belongs to a class of which many objects are never found.{which}"
    )
    return parts.section(
        "Precision and recall",
        parts.figure(image, "Precision against recall for each class", caption),
    )


def _shade(place: int, count: int) -> str:
    """Colours from orange to blue, weakest class first."""
    share = place / max(1, count - 1)
    mixed = [round(a + share * (b - a)) for a, b in zip(WRONG, FOUND, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _sizes(m: DetectionMetrics) -> str:
    """AP by the size of the objects."""
    rows = (
        (
            f'<th scope="row">{name}</th>',
            f"<td>{about}</td>",
            parts.bar(parts.number(ap), ap),
            parts.bar(parts.number(ar), ar),
        )
        for name, about, ap, ar in (
            ("small", "area under 32² pixels", m.ap_small, m.ar_small),
            ("medium", "up to 96²", m.ap_medium, m.ar_medium),
            ("large", "larger", m.ap_large, m.ar_large),
        )
    )
    head = ("Size", "In the image's own pixels", "AP", "Recall, at most 100 boxes")
    return parts.section("Sizes", parts.table("AP by size", head, rows))


def _classes(m: DetectionMetrics) -> str:
    """AP of each class, the worst first; those without boxes last."""
    ranked = sorted(m.per_class, key=lambda row: (math.isnan(row.ap), row.ap))
    rows = (
        (
            f'<th scope="row">{parts.name(row.name)}</th>',
            f"<td>{row.boxes:,}</td>",
            parts.bar(parts.number(row.ap), row.ap),
            parts.bar(parts.number(row.ap50), row.ap50),
        )
        for row in ranked
    )
    table = parts.table("Classes, worst first", ("Class", "Boxes", "AP", "AP50"), rows)
    return parts.section("Classes", table)


def _some(m: DetectionMetrics, samples: BoxSamples) -> str:
    """Images that were not chosen for anything."""
    about = (
        "<p>Not chosen for how well they went. Green dashes: what is there. Blue: found and right. "
        "Orange: found, and wrong.</p>"
    )
    cards = "".join(_card(one, m, samples) for one in m.shown)
    return _gallery("True and found boxes", about, cards)


def _worst(m: DetectionMetrics, samples: BoxSamples) -> str:
    """Images with most errors."""
    if not m.worst:
        return parts.section("Worst images", "<p>Everything was found, and nothing else.</p>")
    about = (
        f"<p>Those with most boxes missed or wrong at a score of {m.threshold:.2f}, worst first. "
        "Labels that are wrong or lacking show up here too.</p>"
    )
    cards = "".join(_card(one, m, samples) for one in m.worst)
    return _gallery("Worst images", about, cards)


def _gallery(title: str, about: str, cards: str) -> str:
    return parts.section(title, f'{about}<ol class="mistakes wide">{cards}</ol>')


def _card(one: ImageResult, m: DetectionMetrics, samples: BoxSamples) -> str:
    """One image with true and found boxes."""
    wrong = int((~one.correct).sum())
    counts = f"{int(one.correct.sum())} right, {one.missed} missed, {wrong} wrong"
    try:
        image = open_image(samples.source(one.sample))
    except ImageError as error:
        shown = f"<p>The image cannot be read any more: {parts.name(error.reason)}</p>"
    else:
        said = samples.annotation(one.sample)
        boxes = [
            DrawnBox(_corners(box), f"{m.classes[label]} {score:.0%}", FOUND if right else WRONG)
            for box, label, score, right in zip(
                one.found.boxes.tolist(),
                one.found.labels.tolist(),
                one.found.scores.tolist(),
                one.correct.tolist(),
                strict=True,
            )
        ]
        boxes += [
            DrawnBox(_corners(box), "", TRUE, dashed=True)
            for box in said.boxes[~said.crowd].tolist()
        ]
        shown = parts.image_tag(
            draw_boxes(image, boxes, longest=THUMBNAIL), f"Boxes in {samples.name(one.sample)}"
        )
    name = parts.name(samples.name(one.sample))
    return f"<li>{shown}<p>{escape(counts)}</p><p><small>{name}</small></p></li>"


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2
