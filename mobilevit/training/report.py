"""`report.html`: how good a trained classifier is, on one page that needs nothing beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mobilevit.checkpoints.config import ModelConfig
from mobilevit.checkpoints.files import replacing
from mobilevit.data.datasets import Samples
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.tasks.classification import ClassificationMetrics, Mistake
from mobilevit.training.page import PAGE, STYLE
from mobilevit.training.plots import TRAINING, VALIDATION, Curve, heat_map, shares, strength, svg
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

    The same run gives the same file, byte by byte. Mistakes whose picture can not be read any
    more are shown without it.

    Args:
        path: the file to write; an old one is replaced.
        result: how good the best weights are.
        history: the figures of epochs and steps; it may be empty.
        samples: the validation pictures, to which the mistakes' indices refer.
        config: of the best weights: their name, source and preprocessing.

    Raises:
        OSError: the file can not be written.
        IndexError: a mistake is of none of the samples.
    """
    metrics = result.metrics
    body = "\n".join(
        (
            _headline(result, history, config),
            _training(history, config.metrics.get("epoch")),
            _confusion(metrics),
            _classes(metrics),
            _mistakes(metrics, samples, config.preprocessing),
        )
    )
    page = PAGE.format(title=escape(config.model), style=STYLE, body=body)
    with replacing(path) as fresh:
        # File names need not be valid text; what is not, is shown by its bytes' numbers.
        fresh.write_text(page, encoding="utf-8", errors="backslashreplace")


def _headline(result: TrainingResult, history: History, config: ModelConfig) -> str:
    """What the model is, how good it is, and what training it took."""
    metrics, side = result.metrics, config.preprocessing.crop
    low, high = _interval(metrics.top1, metrics.samples)
    often = int(metrics.confusion.sum(1).max()) / metrics.samples
    tiles = [
        (
            "Top-1",
            _percent(metrics.top1),
            f"of the validation pictures are named right. So many pictures tell it to within "
            f"{_percent(low)} to {_percent(high)}; naming the most frequent class every time "
            f"would give {_percent(often)}.",
        )
    ]
    if len(metrics.classes) > 5:
        about = "have the right name among the five likeliest."
        tiles.append(("Top-5", _percent(metrics.top5), about))
    tiles += [
        (
            "Calibration error",
            _number(metrics.calibration_error),
            f"The probability that the model states is off by "
            f"{_number(100 * metrics.calibration_error, 1)} points on average.",
        ),
        (
            "Validation pictures",
            f"{metrics.samples:,}",
            f"in {len(metrics.classes)} classes, seen at {side} × {side} pixels. They chose the "
            "best epoch too, so expect slightly less on others.",
        ),
        (
            "Training pictures",
            _percent(result.train_top1),
            "top-1 of the same weights on (a sample of) the pictures they learned from, prepared "
            "in the same way.",
        ),
        ("Gap", f"{_gap(result):+.1f} points", "training minus validation: " + _meaning(result)),
        *_pace(history, config.metrics.get("epoch")),
    ]
    cards = "".join(
        f"<div><dt>{name}</dt><dd><strong>{value}</strong> {about}</dd></div>"
        for name, value, about in tiles
    )
    return (
        f"<header><h1>{_name(config.model)}</h1><p>{_name(config.source)}</p></header>\n"
        f'<section aria-label="Headline"><dl class="tiles">{cards}</dl></section>'
    )


def _gap(result: TrainingResult) -> float:
    """Training top-1 minus validation top-1 under the same preprocessing, in points."""
    return 100 * (result.train_top1 - result.metrics.top1)


def _meaning(result: TrainingResult) -> str:
    """What the gap says, in a sentence."""
    gap, metrics = _gap(result), result.metrics
    low, high = _interval(metrics.top1, metrics.samples)
    if low <= result.train_top1 <= high:
        return "no more than chance would make of so many pictures: no sign of learning by heart."
    if gap < 0:
        return (
            "it does better on pictures it has not learned from; the validation pictures may be "
            "easier ones, or copies of training pictures."
        )
    if gap < GAP:
        return "small: what the model has learned holds for new pictures too."
    return (
        "the model knows the pictures it learned from better than new ones. More pictures, "
        "stronger augmentation or fewer epochs make the gap smaller."
    )


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` pictures."""
    z = 1.96
    centre = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def _pace(history: History, best: float | None) -> list[tuple[str, str, str]]:
    """How long it was trained and how fast that went, as tiles."""
    if not history.epochs:
        return []
    # Here, because it imports Lightning.
    from mobilevit.training.progress import LOADER_IS_BRAKE

    rate = median(row["images_per_second"] for row in history.epochs)
    waiting = median(row["loader_share"] for row in history.epochs)
    brake = (
        "The loader is the brake: more loader workers or smaller files would speed training up."
        if waiting > LOADER_IS_BRAKE
        else "The network is the brake, not the loader."
    )
    kept = "" if best is None else f"The weights of epoch {best:.0f} were the best and are kept."
    return [
        ("Epochs", str(len(history.epochs)), kept),
        ("Speed", f"{rate:,.0f} images/s", "in training, in the median epoch."),
        ("Waiting for the loader", f"{waiting:.0%}", f"of the time of training. {brake}"),
    ]


def _training(history: History, best: float | None) -> str:
    """The curves, and the sizes that were seen."""
    if not history.epochs and not history.steps:
        return _section("Training", "<p>No epoch was recorded.</p>")
    epochs, steps = history.epochs, history.steps
    number = [row["epoch"] for row in epochs]
    ends = [0.0, *(row["step"] for row in epochs)]
    curves = [
        Curve("training", number, [row["train_top1"] for row in epochs], TRAINING, dashed=True),
        Curve("validation", number, [row["val_top1"] for row in epochs], VALIDATION),
    ]
    losses = [
        curves[0]._replace(y=[row["train_loss"] for row in epochs]),
        curves[1]._replace(y=[row["val_loss"] for row in epochs]),
    ]
    if epochs:
        at = np.interp([row["step"] for row in steps], ends, [0.0, *number]).tolist()
        behind = Curve("step", at, [row["loss"] for row in steps], TRAINING, faint=True)
        losses.insert(0, behind)
    rates = [Curve("rate", [row["step"] for row in steps], [row["lr"] for row in steps])]
    kept = " The dotted line is the epoch that was kept." if best is not None else ""
    figures = (
        _figure(
            svg(losses, x="epoch", y="loss", name="loss", mark=best),
            "Loss of training and validation by epoch",
            "Loss by epoch; the light line is that of single steps." + kept,
        ),
        _figure(
            svg(curves, x="epoch", y="top-1", name="top1", percent=True, mark=best),
            "Top-1 of training and validation by epoch",
            "Top-1 by epoch. Training is measured while the network learns, on augmented pictures, "
            "and may therefore lie below validation.",
        ),
        _figure(
            svg(rates, x="step", y="learning rate", name="rate"),
            "Learning rate by step",
            "Learning rate by step.",
        ),
        _sizes(history),
    )
    return _section("Training", f'<div class="figures">{"".join(figures)}</div>')


def _sizes(history: History) -> str:
    """How many batches and pictures there were of each size."""
    total = max(sum(pictures for _, pictures in history.seen.values()), 1)
    rows = (
        (
            f'<th scope="row">{height} × {width}</th>',
            f"<td>{batches:,}</td>",
            _bar(f"{pictures:,}", pictures / total),
        )
        for (height, width), (batches, pictures) in sorted(
            history.seen.items(), key=lambda entry: (entry[0][0] * entry[0][1], entry[0])
        )
    )
    table = _table("Sizes seen", ("Height × width", "Batches", "Pictures"), rows)
    return f"<figure>{table}<figcaption>Sizes seen in training.</figcaption></figure>"


def _confusion(metrics: ClassificationMetrics) -> str:
    """What is taken for what."""
    counts = metrics.confusion.numpy()
    about = (
        "Rows: what a picture is; columns: what the model says. Blue is right, orange wrong; the "
        "stronger, the larger the share of its row (as its root, so that rare ones show)."
    )
    if len(counts) <= NAMED:
        matrix = _matrix(metrics.classes, counts)
    else:
        matrix = (
            f'<img class="heat" src="{_data_uri(heat_map(counts), "png")}" '
            f'alt="Heat map of the confusion matrix of {len(counts)} classes">'
        )
    parts = [f"<p>{about}</p>", matrix]
    if len(counts) > COUNTED:
        parts.append(_frequent(metrics.classes, counts))
    return _section("Confusion matrix", "".join(parts))


def _matrix(classes: Sequence[str], counts: np.ndarray) -> str:
    """The confusion matrix as a table with coloured cells."""
    share = shares(counts)
    strong = strength(share)
    rows = []
    for row, label in enumerate(classes):
        cells = [f'<th scope="row">{_name(label)}</th>']
        for column, answer in enumerate(classes):
            if not (count := int(counts[row, column])):
                cells.append("<td></td>")
                continue
            kind = "hit" if row == column else "miss"
            title = f"{label} → {answer}: {count} ({_percent(share[row, column])})"
            cells.append(
                f'<td class="{kind}" style="--a:{strong[row, column]:.2f}" '
                f'title="{escape(title)}"><span>{count}</span></td>'
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col"><span>{_name(answer)}</span></th>' for answer in classes)
    kind = "matrix" if len(classes) <= COUNTED else "matrix small"
    return _scroll(
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
            f'<th scope="row">{_name(classes[label])}</th>',
            f"<td>{_name(classes[answer])}</td>",
            f"<td>{wrong[label, answer]:,}</td>",
            _bar(_percent(share[label, answer]), share[label, answer]),
        )
        for label, answer in pairs
        if wrong[label, answer]
    ]
    if not rows:
        return "<p>Nothing is confused.</p>"
    head = ("Label", "Answer", "Pictures", "Share of the label")
    return "<h3>Most frequent confusions</h3>" + _table("Most frequent confusions", head, rows)


def _classes(metrics: ClassificationMetrics) -> str:
    """How good each class is, the worst first; those without pictures last."""
    ranked = sorted(metrics.per_class(), key=lambda row: (math.isnan(row[3]), row[3]))
    rows = (
        (
            f'<th scope="row">{_name(name)}</th>',
            f"<td>{count:,}</td>",
            *(_bar(_percent(share), share) for share in (recall, precision, f1)),
        )
        for name, count, _, recall, precision, f1 in ranked
    )
    about = (
        "<p>Recall: of the pictures of a class, the share that is named right. Precision: of those "
        "that are given its name, the share that is right. F1 joins the two.</p>"
    )
    head = ("Class", "Pictures", "Recall", "Precision", "F1")
    return _section("Classes", about + _table("Classes, worst recall first", head, rows))


def _mistakes(metrics: ClassificationMetrics, samples: Samples, seen: Preprocessing) -> str:
    """The worst mistakes as pictures."""
    wrong = metrics.samples - int(metrics.confusion.diag().sum())
    if not metrics.mistakes:
        return _section("Worst mistakes", "<p>There are none.</p>")
    about = (
        f"<p>{len(metrics.mistakes)} of {wrong:,}, worst first, as the network saw them. A label "
        "that is wrong itself shows up here too.</p>"
    )
    cards = "".join(_mistake(mistake, metrics, samples, seen) for mistake in metrics.mistakes)
    return _section("Worst mistakes", f'{about}<ol class="mistakes">{cards}</ol>')


def _mistake(
    mistake: Mistake, metrics: ClassificationMetrics, samples: Samples, seen: Preprocessing
) -> str:
    """One picture, what it is and what it was taken for."""
    label, answer = metrics.classes[mistake.label], metrics.classes[mistake.predicted]
    try:
        image = seen.frame(open_image(samples.source(mistake.sample)))
    except ImageError as error:
        picture = f"<p>The picture can not be read any more: {_name(error.reason)}</p>"
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = BytesIO()
        image.save(file, "JPEG", quality=80)
        alt = escape(f"{label}, taken for {answer}")
        picture = f'<img src="{_data_uri(file.getvalue(), "jpeg")}" alt="{alt}">'
    return (
        f"<li>{picture}<p>is <b>{_name(label)}</b></p>"
        f"<p>taken for <b>{_name(answer)}</b>, {_percent(mistake.probability)}</p>"
        f"<p>loss {_number(mistake.loss, 2)}</p>"
        f"<p><small>{_name(samples.name(mistake.sample))}</small></p></li>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _figure(picture: str, alt: str, caption: str) -> str:
    """An inline SVG with what it shows."""
    picture = picture.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box of its own; cells come as HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return _scroll(title, f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


def _scroll(title: str, content: str) -> str:
    """A box that scrolls what is too wide or too long; also by keyboard, hence the tabindex."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">{content}</div>'


def _bar(text: str, share: float) -> str:
    """A cell with a bar as long as a share."""
    width = 0.0 if math.isnan(share) else 100 * share
    return f'<td class="bar" style="--v:{width:.1f}%">{text}</td>'


def _name(text: str) -> str:
    """A name that users gave, harmless, and of its own reading direction."""
    return f"<bdi>{escape(text)}</bdi>"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
