"""`report.html`: how good a trained classifier is, on one page that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import frame_image
from mobilevit.data.samples import Samples
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.tasks import report_sections as parts
from mobilevit.tasks.classification.metrics import ClassificationMetrics, Mistake
from mobilevit.training.plots import heat_map, shares, strength
from mobilevit.training.result import TrainingResult

if TYPE_CHECKING:
    # Lightning, which callbacks are made of, takes seconds to import.
    from mobilevit.training.callbacks import History

COUNTED, NAMED = 20, 60
"""Up to so many classes the confusion matrix has counts in its cells; names at its sides."""
FREQUENT = 30
"""How many pairs of confused classes are listed where the matrix has no counts."""
THUMBNAIL = 192
"""Long side in pixels."""
GAP = 5.0
"""From so many points on, the gap is said to be one."""


def write_report(
    path: Path,
    result: TrainingResult,
    history: History,
    samples: Samples,
    *,
    config: ModelConfig,
) -> None:
    """Write the report of a training run as one HTML file, in one step.

    The same run gives the same file, byte by byte. Mistakes whose image cannot be read any
    more are shown without it.

    Args:
        path: the file to write; an old one is replaced.
        result: how good the best weights are.
        history: the figures of epochs and steps; it may be empty.
        samples: the validation images, to which the mistakes' indices refer.
        config: of the best weights: their name, source and preprocessing.

    Raises:
        OSError: the file cannot be written.
        IndexError: a mistake is of none of the samples.
    """
    metrics, best = result.metrics, config.metrics.get("epoch")
    about = (
        "Top-1 by epoch. Training is measured while the network learns, on augmented images, "
        "and may therefore lie below validation."
    )
    body = (
        _headline(result, history, config),
        parts.training_section(history, best, figures={"top1": "top-1"}, about=about),
        _confusion(metrics),
        _classes(metrics),
        _mistakes(metrics, samples, config.preprocessing),
    )
    parts.write_page(path, title=config.model, body=body)


def _headline(result: TrainingResult, history: History, config: ModelConfig) -> str:
    """What the model is, how good it is, and what training it took."""
    metrics, side = result.metrics, config.preprocessing.crop
    low, high = _interval(metrics.top1, metrics.images)
    often = int(metrics.confusion.sum(1).max()) / metrics.images
    tiles = [
        (
            "Top-1",
            parts.percent(metrics.top1),
            f"of the validation images are named right. So many images tell it to within "
            f"{parts.percent(low)} to {parts.percent(high)}; naming the most frequent class every "
            f"time would give {parts.percent(often)}.",
        )
    ]
    if len(metrics.classes) > 5:
        about = "have the right name among the five likeliest."
        tiles.append(("Top-5", parts.percent(metrics.top5), about))
    tiles += [
        (
            "Calibration error",
            parts.number(metrics.calibration_error),
            f"The probability that the model states is off by "
            f"{parts.number(100 * metrics.calibration_error, 1)} points on average.",
        ),
        (
            "Validation images",
            f"{metrics.images:,}",
            f"in {len(metrics.classes)} classes, seen at {side} × {side} pixels. They chose the "
            "best epoch too, so expect slightly less on others.",
        ),
        (
            "Training images",
            parts.percent(result.train_metrics.top1),
            "top-1 of the same weights on (a sample of) the images they learned from, prepared "
            "in the same way.",
        ),
        ("Gap", f"{_gap(result):+.1f} points", "training minus validation: " + _meaning(result)),
        *parts.pace(history, config.metrics.get("epoch")),
    ]
    return parts.headline(config.model, config.source, tiles)


def _gap(result: TrainingResult) -> float:
    """Training top-1 minus validation top-1 under the same preprocessing, in points."""
    return 100 * (result.train_metrics.top1 - result.metrics.top1)


def _meaning(result: TrainingResult) -> str:
    """What the gap says, in a sentence."""
    gap, metrics = _gap(result), result.metrics
    low, high = _interval(metrics.top1, metrics.images)
    if low <= result.train_metrics.top1 <= high:
        return "no more than chance would make of so many images: no sign of learning by heart."
    if gap < 0:
        return (
            "it does better on images it has not learned from; the validation images may be "
            "easier ones, or copies of training images."
        )
    if gap < GAP:
        return "small: what the model has learned holds for new images too."
    return (
        "the model knows the images it learned from better than new ones. More images, "
        "stronger augmentation or fewer epochs make the gap smaller."
    )


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` images."""
    z = 1.96
    centre = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def _confusion(metrics: ClassificationMetrics) -> str:
    """What is taken for what."""
    counts = metrics.confusion.numpy()
    about = (
        "Rows: what an image is; columns: what the model says. Blue is right, orange wrong; the "
        "stronger, the larger the share of its row (as its root, so that rare ones show)."
    )
    if len(counts) <= NAMED:
        matrix = _matrix(metrics.classes, counts)
    else:
        matrix = (
            f'<img class="heat" src="{parts.data_uri(heat_map(counts), "png")}" '
            f'alt="Heat map of the confusion matrix of {len(counts)} classes">'
        )
    pieces = [f"<p>{about}</p>", matrix]
    if len(counts) > COUNTED:
        pieces.append(_frequent(metrics.classes, counts))
    return parts.section("Confusion matrix", "".join(pieces))


def _matrix(classes: Sequence[str], counts: np.ndarray) -> str:
    """The confusion matrix as a table with coloured cells."""
    share = shares(counts)
    strong = strength(share)
    rows = []
    for row, label in enumerate(classes):
        cells = [f'<th scope="row">{parts.name(label)}</th>']
        for column, answer in enumerate(classes):
            if not (count := int(counts[row, column])):
                cells.append("<td></td>")
                continue
            kind = "hit" if row == column else "miss"
            title = f"{label} → {answer}: {count} ({parts.percent(share[row, column])})"
            cells.append(
                f'<td class="{kind}" style="--a:{strong[row, column]:.2f}" '
                f'title="{escape(title)}"><span>{count}</span></td>'
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col"><span>{parts.name(answer)}</span></th>' for answer in classes)
    kind = "matrix" if len(classes) <= COUNTED else "matrix small"
    return parts.scroll(
        "Confusion matrix",
        f'<table class="{kind}"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _frequent(classes: Sequence[str], counts: np.ndarray) -> str:
    """The pairs that are confused most often, as a table."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:FREQUENT]
    pairs = [divmod(int(place), len(classes)) for place in order]
    share = shares(counts)
    rows = [
        (
            f'<th scope="row">{parts.name(classes[label])}</th>',
            f"<td>{parts.name(classes[answer])}</td>",
            f"<td>{wrong[label, answer]:,}</td>",
            parts.bar(parts.percent(share[label, answer]), share[label, answer]),
        )
        for label, answer in pairs
        if wrong[label, answer]
    ]
    if not rows:
        return "<p>Nothing is confused.</p>"
    head = ("Label", "Answer", "Images", "Share of the label")
    return "<h3>Most frequent confusions</h3>" + parts.table("Most frequent confusions", head, rows)


def _classes(metrics: ClassificationMetrics) -> str:
    """How good each class is, the worst first; those without images last."""
    ranked = sorted(metrics.per_class(), key=lambda row: (math.isnan(row[3]), row[3]))
    rows = (
        (
            f'<th scope="row">{parts.name(name)}</th>',
            f"<td>{count:,}</td>",
            *(parts.bar(parts.percent(share), share) for share in (recall, precision, f1)),
        )
        for name, count, _, recall, precision, f1 in ranked
    )
    about = (
        "<p>Recall: of the images of a class, the share that is named right. Precision: of those "
        "that are given its name, the share that is right. F1 joins the two.</p>"
    )
    head = ("Class", "Images", "Recall", "Precision", "F1")
    return parts.section("Classes", about + parts.table("Classes, worst recall first", head, rows))


def _mistakes(metrics: ClassificationMetrics, samples: Samples, seen: Preprocessing) -> str:
    """The worst mistakes as images."""
    wrong = metrics.images - int(metrics.confusion.diag().sum())
    if not metrics.mistakes:
        return parts.section("Worst mistakes", "<p>There are none.</p>")
    about = (
        f"<p>{len(metrics.mistakes)} of {wrong:,}, worst first, as the network saw them. A label "
        "that is wrong itself shows up here too.</p>"
    )
    cards = "".join(_mistake(mistake, metrics, samples, seen) for mistake in metrics.mistakes)
    return parts.section("Worst mistakes", f'{about}<ol class="mistakes">{cards}</ol>')


def _mistake(
    mistake: Mistake, metrics: ClassificationMetrics, samples: Samples, seen: Preprocessing
) -> str:
    """One image, what it is and what it was taken for."""
    label, answer = metrics.classes[mistake.label], metrics.classes[mistake.predicted]
    try:
        image = frame_image(open_image(samples.source(mistake.sample)), seen)
    except ImageError as error:
        img = f"<p>The image cannot be read any more: {parts.name(error.reason)}</p>"
    else:
        img = parts.image_tag(image, f"{label}, taken for {answer}", longest=THUMBNAIL)
    return (
        f"<li>{img}<p>is <b>{parts.name(label)}</b></p>"
        f"<p>taken for <b>{parts.name(answer)}</b>, {parts.percent(mistake.probability)}</p>"
        f"<p>loss {parts.number(mistake.loss, 2)}</p>"
        f"<p><small>{parts.name(samples.name(mistake.sample))}</small></p></li>"
    )
