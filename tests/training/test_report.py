"""The report of a training run."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.tasks import get_task
from mobilevit.tasks.classification.metrics import ClassificationMetrics, Mistake
from mobilevit.tasks.report import Curve, Plot
from mobilevit.training.report.page import write_report
from mobilevit.training.report.plots import svg
from tests.data.factories import labelled_images
from tests.pages import Page

pytestmark = pytest.mark.slow


@pytest.fixture
def samples(tmp_path):
    for number in range(4):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}<i>.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 60, 3), 60 * number, np.uint8)).save(file)
    return labelled_images(tmp_path / "images")


def history(epochs=3, every=1):
    names = ("train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5")
    return SimpleNamespace(
        every=every,
        epochs=[
            {
                **{"epoch": epoch, "step": 10 * epoch, "lr": 0.001, "seconds": 3.0},
                **{name: 0.2 * number / epoch for number, name in enumerate(names, 1)},
                **{"images_per_second": 87.4, "loader_share": 0.43, "peak_memory": 2 << 30},
            }
            for epoch in range(1, epochs + 1)
        ],
        steps=[
            {
                **{"step": step, "epoch": (step - 1) // 10, "height": 96 + 32 * (step % 2)},
                **{"width": 128, "batch": 8, "lr": 0.001 / step, "loss": 2.0 / step},
            }
            for step in range(1, 10 * epochs + 1, every)
        ],
        seen={(96, 128): (5 * epochs, 40 * epochs), (128, 128): (5 * epochs, 40 * epochs)},
    )


def metrics(classes, mistakes=2):
    count = len(classes)
    confusion = torch.eye(count, dtype=torch.long) * 8
    confusion[0, 1] = 2
    confusion[-1] = 0  # a class without images: its figures are undefined
    total = int(confusion.sum())
    return ClassificationMetrics(
        classes=tuple(classes),
        images=total,
        top1=int(confusion.diag().sum()) / total,
        top5=0.99,
        loss=0.5,
        calibration_error=0.0421,
        confusion=confusion,
        mistakes=tuple(Mistake(number, 0, 1, 0.87, 2.04) for number in range(mistakes)),
    )


def report(tmp_path, samples, classes, *, mistakes=2, train_top1=0.99, **figures):
    figures_of_run = history(**figures)
    config = ModelConfig(
        model="mobilevit_xxs",
        num_classes=len(classes),
        classes=tuple(classes),
        preprocessing=Preprocessing().at(32),
        source="trained on <photos>",
        metrics={"epoch": 2},
    )
    val = metrics(classes, mistakes)
    task = get_task("classification")
    told = task.report(val, replace(val, top1=train_top1), samples, config)
    path = tmp_path / "report.html"
    write_report(path, told, figures_of_run, config=config)
    return path.read_text(encoding="utf-8")


HOSTILE = ["<script>alert(1)</script>", 'a"b', "猫", "قط"]


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (["yes", "no"], {"epochs": 1}),
        (HOSTILE, {}),
        ([f"class {number}" for number in range(30)], {"every": 7}),
        ([f"class {number}" for number in range(120)], {}),
        (["yes", "no"], {"mistakes": 0}),
    ],
)
def test_every_report_is_whole_and_needs_nothing_beside_it(tmp_path, samples, classes, options):
    text = report(tmp_path, samples, classes, **options)
    page = Page(text)
    assert page.open == []
    assert page.loaded == []
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", text)
    assert len(text) < 1_500_000


def test_the_figures_are_in_it(tmp_path, samples):
    text = report(tmp_path, samples, ["ant", "bee", "cat"])
    for figure in ("88.9%", "0.042", "99.0%", "87 images/s", "43%"):
        assert figure in text, figure
    assert "The loader is the bottleneck" in text
    assert "128 × 128" in text and "96 × 128" in text
    assert text.count("<svg") == 3
    assert text.index("80.0%") < text.index("100.0%", text.index("<h2>Classes"))


def test_mistakes_are_shown_as_images_even_if_one_is_gone(tmp_path, samples):
    samples.source(1).unlink()
    text = report(tmp_path, samples, ["ant", "bee", "cat"])
    assert text.count("data:image/jpeg;base64,") == 1
    assert "can no longer be read" in text
    assert "predicted as" in text and "87.0%" in text


def test_a_file_name_need_not_be_text(tmp_path, samples):
    name = "caf\udce9.png"  # what Python makes of a byte that is no UTF-8
    object.__setattr__(samples, "name", lambda index: name)
    assert "caf\\udce9.png" in report(tmp_path, samples, ["ant", "bee"])


def plot(*curves):
    return Plot(curves=curves, x="epoch", y="value", name="plot", alt="", caption="")


def test_figures_that_are_not_finite_leave_gaps():
    values = [2.0, float("nan"), float("inf"), 1.0]
    drawn = svg(plot(Curve("loss", [1, 2, 3, 4], values)))
    assert "nan" not in drawn and "inf" not in drawn
    assert drawn.count("<use") >= 2


def test_a_single_epoch_stands_at_a_whole_number():
    drawn = svg(plot(Curve("top-1", [1], [0.5])))
    across = drawn[drawn.index("axis_1") : drawn.index("axis_2")]
    assert re.findall(r">([\d.]+)</text>", across) == ["1"]


def test_names_are_escaped(tmp_path, samples):
    text = report(tmp_path, samples, HOSTILE)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<i>.png" not in text and "0&lt;i&gt;.png" in text
    assert "trained on &lt;photos&gt;" in text
    assert "猫" in text


def test_the_same_run_gives_the_same_file(tmp_path, samples):
    assert report(tmp_path, samples, ["a", "b"]) == report(tmp_path, samples, ["a", "b"])


def test_names_in_a_legend_are_no_formulas():
    lines = [Curve(name, [0.0, 1.0], [0.0, 1.0]) for name in ("$x_$", "_hidden", r"$\frac$")]
    text = svg(plot(*lines))
    for curve in lines:
        assert curve.name in text
