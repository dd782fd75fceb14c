"""How a classifier is evaluated."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_score, recall_score

from mobilevit.models.config import ModelConfig
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.classification.metrics import ClassificationMetric
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.evaluate import evaluate_batches

CLASSES = tuple("abcdefg")


def evaluate(logits, labels, *, classes=CLASSES, batch=4, **options):
    """The metrics of a model that outputs these logits."""
    batches = [
        # The "images" are the logits themselves.
        [ImageBatch(logits[part], [], part.tolist(), labels[part])]
        for part in torch.arange(len(labels)).split(batch)
        if len(part)
    ]
    metric = ClassificationMetric(SimpleNamespace(classes=classes), **options)
    return evaluate_batches(get_task("classification"), lambda images: images, batches, metric)


@pytest.fixture
def case():
    torch.manual_seed(0)
    labels = torch.randint(0, 6, (21,))  # nobody is a "g"
    logits = 2 * torch.randn(21, 7)
    logits[range(15), labels[:15]] += 3
    return logits, labels


def test_figures_equal_scikit_learns(case):
    logits, labels = case
    metrics = evaluate(logits, labels)
    predicted = logits.argmax(1)
    assert metrics.images == 21
    assert metrics.top1 == pytest.approx((predicted == labels).double().mean().item())
    in_five = [label in row for label, row in zip(labels, logits.topk(5).indices, strict=True)]
    assert metrics.top5 == pytest.approx(np.mean(in_five))
    assert metrics.loss == pytest.approx(
        log_loss(labels, logits.double().softmax(1), labels=range(7)), rel=1e-5
    )
    everyone = list(range(7))
    confusion = confusion_matrix(labels, predicted, labels=everyone)
    assert metrics.confusion.tolist() == confusion.tolist()
    rows = metrics.per_class
    assert [row.name for row in rows] == list(CLASSES)
    assert [row.images for row in rows] == confusion.sum(1).tolist()
    assert [row.correct for row in rows] == confusion.diagonal().tolist()
    for column, score in ((3, recall_score), (4, precision_score), (5, f1_score)):
        expected = score(labels, predicted, labels=everyone, average=None, zero_division=np.nan)
        for name, row, value in zip(CLASSES, rows, expected, strict=True):
            assert row[column] == pytest.approx(value, nan_ok=True), (name, column)


def test_batches_do_not_matter(case):
    one, other = (evaluate(*case, batch=batch) for batch in (1, 21))
    assert (one.top1, one.top5, one.images) == (other.top1, other.top5, other.images)
    assert one.confusion.tolist() == other.confusion.tolist()
    assert one.loss == pytest.approx(other.loss)
    assert one.calibration_error == pytest.approx(other.calibration_error)
    assert one.mistakes == other.mistakes


def test_calibration_error_of_a_known_case():
    # ten answers at 80% confidence of which six are right
    logits = torch.zeros(10, 2)
    logits[:, 0] = math.log(4)
    labels = torch.tensor([0] * 6 + [1] * 4)
    metrics = evaluate(logits, labels, classes=("yes", "no"))
    assert metrics.calibration_error == pytest.approx(0.2, abs=1e-6)
    assert metrics.top5 == 1  # of two classes


def test_the_worst_mistakes_come_first(case):
    logits, labels = case
    metrics = evaluate(logits, labels, worst=3)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    wrong = (logits.argmax(1) != labels).nonzero().flatten().tolist()
    expected = sorted(wrong, key=lambda row: -losses[row])[:3]
    assert [mistake.sample for mistake in metrics.mistakes] == expected
    first = metrics.mistakes[0]
    assert first.label == labels[expected[0]] and first.predicted == logits[expected[0]].argmax()
    assert first.probability == pytest.approx(logits[expected[0]].softmax(0).max().item())


def training_of(classes):
    task, config = get_task("classification"), ModelConfig(model="mobilevit_xxs", num_classes=1)
    val = SimpleNamespace(classes=classes)
    return task.training_task(task.options(), val, config, sizes=(), console=Console())


def test_figures_of_an_epoch_are_means_over_images(case):
    """Whatever the lengths of batches; a step without a finite loss does not count."""
    logits, labels = case
    training = training_of(CLASSES)
    for images, *values in ((1, 1.0, 1.0), (3, 5.0, 0.0), (2, math.nan, 0.0), (2, math.inf, 0.5)):
        loss, top1 = map(torch.tensor, values)
        training.count(images, loss=loss, top1=top1, top5=top1)
    figures = training.figures("train")
    assert (figures["train_loss"], figures["train_top1"]) == (4, 0.25)
    for part in torch.arange(21).split(8):
        batch = ImageBatch(logits[part], [], part.tolist(), labels[part])
        training.validate(lambda images: images, [batch])
    figures, expected = training.figures("val"), torch.nn.functional.cross_entropy(logits, labels)
    assert figures["val_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert figures["val_top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    training.reset("val")
    training.validate(lambda images: images * math.nan, [batch])
    assert math.isnan(training.figures("val")["val_loss"])


def test_logits_rank_classes_where_probabilities_are_0():
    """Float32 probabilities of logits 110 and 150 below the highest are both 0."""
    task, classes = get_task("classification"), tuple("abcdefghijklmnopqrst")
    logits = torch.zeros(1, 20)
    logits[0, 3], logits[0, 17] = 150, 40
    label = torch.tensor([17])
    metrics = evaluate(logits, label, classes=classes)
    assert (metrics.top1, metrics.top5) == (0, 1) and metrics.row()["top-5"] == "100.00%"
    training = training_of(classes)
    training.validate(lambda images: images, [ImageBatch(logits, [], [0], label)])
    assert training.figures("val")["val_top5"] == 1
    prediction = task.prediction("a.jpg", classes, logits[0], InferenceOptions())
    assert [name for name, _ in prediction.top(2)] == ["d", "r"]
    assert "r" in prediction.csv_rows()[0].values() and "r" in prediction.parquet_row()["classes"]


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(torch.zeros(0, 7), torch.zeros(0).long())


def test_figures_of_an_epoch_need_no_counts_of_pairs_of_classes():
    """Those of ImageNet-21k would take 4 GB."""
    samples = SimpleNamespace(classes=tuple(map(str, range(21_841))))
    metric = get_task("classification").metric(samples, figures_only=True)
    logits = torch.eye(3, 21_841)
    logits[2, 5:] = 2.0  # the label 2 is behind many others
    metric.update(logits, ImageBatch(torch.zeros(3, 3, 8, 8), [], [0, 1, 2], torch.arange(3)))
    assert metric.figures() == pytest.approx({"top1": 2 / 3, "top5": 2 / 3})
