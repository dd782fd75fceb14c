"""What every task does in the same way: predictions, evaluations, contact sheets, reports."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.data.images import ImageError
from mobilevit.data.options import DataOptions
from mobilevit.tasks import TASKS, check_data_options, get_task
from mobilevit.training.report.page import write_report
from tests.pages import Page

CLASSES = ("ant", "bee", "<cat>")
SHAPES = ((60, 80), (90, 70), (64, 64), (40, 100), (75, 75), (50, 60))
"""(height, width) of the images, two of each class."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set for each task, in the folder of its name."""
    root = tmp_path_factory.mktemp("sets")
    draw = np.random.default_rng(0)
    for folder in ("detection/images", "detection/labels", "segmentation/images"):
        (root / folder).mkdir(parents=True)
    (root / "segmentation" / "masks").mkdir()
    for number, (height, width) in enumerate(SHAPES):
        label = number % 3
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        (root / "classification" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        for place in (
            f"classification/{CLASSES[label]}",
            "detection/images",
            "segmentation/images",
        ):
            image.save(root / place / f"{number}.png")
        (root / "detection" / "labels" / f"{number}.txt").write_text(f"{label} 0.5 0.5 0.6 0.7\n")
        mask = np.full((height, width), label, np.uint8)
        mask[: height // 2] = (label + 1) % 3
        Image.fromarray(mask).save(root / "segmentation" / "masks" / f"{number}.png")
    (root / "detection" / "data.yaml").write_text(f"val: images\nnames: {json.dumps(CLASSES)}\n")
    (root / "segmentation" / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module", params=list(TASKS))
def task(request: pytest.FixtureRequest) -> Any:
    return get_task(request.param)


@pytest.fixture(scope="module")
def model(task: Any) -> Any:
    """A new network, whose detector's boxes have scores above the default threshold."""
    torch.manual_seed(0)
    name = task.default_model.replace("_xs", "_xxs")
    network = mobilevit.create_model(name, classes=CLASSES).eval()
    config = network.config
    network.config = replace(config, preprocessing=config.preprocessing.at(64))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    return network


@pytest.fixture(scope="module")
def evaluation(task: Any, model: Any, roots: Path) -> Any:
    data = DataOptions(root=str(roots / task.name), workers=0)
    return mobilevit.evaluate(model, data=data, sizes=[64, 96])


def images_of(roots: Path, task: Any) -> list[Path]:
    return sorted((roots / task.name).rglob("[0-9].png"))[:3]


@pytest.fixture
def predictions(task: Any, model: Any, roots: Path, tmp_path: Path) -> Any:
    """Of three images and of one that is broken, written to `out` and to a contact sheet."""
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    one, *others = images_of(roots, task)
    return mobilevit.predict(
        model, one, broken, *others, out=str(tmp_path / "out"), html=str(tmp_path / "sheet.html")
    )


def test_texts_and_files_of_predictions(task: Any, predictions: Any, tmp_path: Path) -> None:
    assert predictions.exit_code == 1 and len(predictions) == 4
    assert [item.error is None for item in predictions] == [True, False, True, True]
    assert isinstance(predictions, task.predictions_type)
    assert all(isinstance(item, task.prediction_type) for item in predictions)
    with pytest.raises(ImageError, match="broken"):
        predictions[1].scores()
    rows = [json.loads(line) for line in predictions.to_jsonl().splitlines()]
    assert [row["file"] for row in rows] == [item.source for item in predictions]
    assert "not an image" in rows[1]["error"]
    assert all(len(row) == 2 and "error" not in row for row in (rows[0], *rows[2:]))
    table = list(csv.DictReader(io.StringIO(predictions.to_csv())))
    assert {row["file"] for row in table} >= {predictions[1].source}
    assert all(None not in row and None not in row.values() for row in table)
    assert [row["file"] for row in table if row["error"]] == [predictions[1].source]
    assert "not read" in str(predictions) and str(predictions) == predictions.to_table()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {f"1-{Path(predictions[0].source).stem}.jpg", *predictions.files()}
    assert not any(name.startswith("2-") for name in written)
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == predictions.to_jsonl() + "\n"


def test_rows_fit_the_columns_of_parquet_files(task: Any, predictions: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    schema = pyarrow.schema(task.parquet_columns(pyarrow))
    rows = [item.parquet_row() for item in predictions if item.error is None]
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    assert all(row.keys() == set(schema.names) for row in rows)
    assert table.num_rows == 3


def test_a_contact_sheet_shows_what_was_predicted(
    task: Any, predictions: Any, tmp_path: Path
) -> None:
    text = (tmp_path / "sheet.html").read_text()
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert found is not None and "<cat>" not in text
    data = json.loads(found[1])
    assert data["task"] == task.name and data["classes"] == list(CLASSES)
    assert len(data["colours"]) in (0, len(CLASSES))
    for row, item in zip(data["items"], predictions, strict=True):
        assert row["file"] == item.source
        if item.error is not None:
            assert row["error"] == item.error and row["scores"] == [] and "small" not in row
            continue
        scores = [(CLASSES[label], value) for label, value in row["scores"]]
        assert scores == [(name, pytest.approx(value, abs=1e-4)) for name, value in item.scores()]
        assert all(0 <= value <= 1 for _, value in scores)
        with Image.open(tmp_path / row["small"]) as small, Image.open(item.source) as image:
            assert small.size == image.size  # which is smaller than a thumbnail


def test_an_evaluation_as_text_and_json(task: Any, evaluation: Any) -> None:
    with pytest.raises(ValueError, match="2 sizes"):
        _ = evaluation.metrics
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert list(content["sizes"]) == ["64", "96"]
    for size, metrics in evaluation.by_size.items():
        values = content["sizes"][str(size)]
        assert values["images"] == metrics.images == len(SHAPES)
        assert values[task.metric_key] == pytest.approx(getattr(metrics, task.metric_key))
        assert 0 <= getattr(metrics, task.metric_key) <= 1
        assert [row["name"] for row in values["per_class"]] == list(CLASSES)
        assert metrics.summary(metrics).count(f"{metrics.images} validation images") == 1
    text = str(evaluation)
    assert "64 px" in text and "96 px" in text and all(name in text for name in CLASSES)


def write_numbered(root: Path, task: str, names: tuple[str, ...]) -> None:
    """Two images of the second class and one of the first, which formats order in their ways."""
    labels = (1, 0, 1)
    for number, label in enumerate(labels):
        folder = {"classification": f"{names[label]}/"}.get(task, "images/")
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (80 * number, 90, 90)).save(root / folder / f"{number}.png")
        if task == "detection":
            (root / "labels").mkdir(exist_ok=True)
            (root / "labels" / f"{number}.txt").write_text(f"{label} 0.5 0.5 0.6 0.7\n")
        elif task == "segmentation":
            (root / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(np.full((64, 64), label, np.uint8))
            mask.save(root / "masks" / f"{number}.png")
    (root / "data.yaml").write_text(f"val: images\nnames: {json.dumps(names)}\n")
    (root / "classes.txt").write_text("\n".join(names))


def test_figures_follow_the_names_of_classes(task: Any, tmp_path: Path) -> None:
    """Whatever their order in the data, and if it lacks one; here the network finds 10 alone."""
    # In classes.txt numbers would be the masks' values.
    one, two, ten = ("a1", "a2", "a10") if task.name == "segmentation" else ("1", "2", "10")
    write_numbered(tmp_path, task.name, (ten, one))
    name = task.default_model.replace("_xs", "_xxs")
    network = mobilevit.create_model(name, classes=(one, two, ten)).eval()
    network.config = replace(network.config, preprocessing=network.config.preprocessing.at(64))

    def only_10(module: Any, images: Any, outputs: Any) -> Any:
        if task.name == "detection":
            logits = torch.full_like(outputs.logits, -9.0)
            logits[..., 3] = 9  # after the background
            return outputs._replace(logits=logits)
        return torch.zeros_like(outputs).index_fill_(1, torch.tensor([2]), 9.0)

    network.register_forward_hook(only_10)
    data = DataOptions(root=str(tmp_path), workers=0)
    evaluation = mobilevit.evaluate(network, data=data)
    (values,) = json.loads(json.dumps(evaluation.to_json()))["sizes"].values()
    assert values["classes"] == [one, two, ten]
    rows = {row["name"]: [*row.values()][1:] for row in values["per_class"]}
    counts = [row[0] for row in rows.values()]
    assert list(rows) == values["classes"] and counts == [2 * counts[2], 0, counts[2]] != [0, 0, 0]
    metric = {"classification": "recall", "detection": "ap", "segmentation": "accuracy"}[task.name]
    found = {row["name"]: row[metric] for row in values["per_class"]}
    assert found[one] == 0 and found[two] is None and found[ten] >= 0
    if task.name != "detection":
        assert found[ten] == 1
        assert values["confusion"] == [[0, 0, counts[0]], [0, 0, 0], [0, 0, counts[2]]]
    lines = [line.split() for line in str(evaluation).splitlines()]
    for name, count in zip(values["classes"], counts, strict=True):
        assert any(line[:2] == [name, str(count)] for line in lines)


def test_a_report_is_one_page_that_loads_nothing(
    task: Any, model: Any, evaluation: Any, roots: Path, tmp_path: Path
) -> None:
    data = DataOptions(root=str(roots / task.name), workers=0)
    samples = task.evaluation_samples(data, CLASSES)
    metrics = evaluation.by_size[64]
    report = task.report(metrics, metrics, samples, model.config)
    figures = {
        f"{side}_{key}": 0.5 for side in ("train", "val") for key in ("loss", *report.figures)
    }
    pace = {"images_per_second": 87.4, "loader_share": 0.43, "peak_memory": 2 << 30}
    epoch = {"epoch": 1, "step": 10, **pace, **figures}
    history: Any = SimpleNamespace(
        epochs=[epoch], steps=[{"step": 1, "lr": 0.1, "loss": 2.0}], seen={(64, 64): (10, 80)}
    )
    path = tmp_path / "report.html"
    config = replace(model.config, metrics={"epoch": 1})
    write_report(path, report, history, config=config)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.loaded == []
    assert "&lt;cat&gt;" in text and text.count("<svg") >= 3
    assert text.count("data:image/jpeg") >= 1
    for title in report.sections:
        assert f"<h2>{title}</h2>" in text
    for tile in report.tiles:
        assert f"<strong>{tile.value}</strong>" in text
    write_report(tmp_path / "again.html", report, history, config=config)
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_outputs_that_are_not_numbers_count_for_no_class(
    task: Any, model: Any, roots: Path, tmp_path: Path
) -> None:
    """Evaluation stops at them, naming the images; in predictions they are the image's error."""
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        *_, last = damaged.parameters()
        last.fill_(torch.nan)
    data = DataOptions(root=str(roots / task.name), workers=0)
    first, second, *_ = images_of(roots, task)
    with pytest.raises(ValueError, match=f"NaN or infinite for {re.escape(str(first))}: "):
        mobilevit.evaluate(damaged, data=data, batch_size=1)
    predictions = mobilevit.predict(damaged, first, second)
    assert predictions.exit_code == 1
    assert all("outputs for it are NaN" in item.error for item in predictions)


def test_options_of_other_tasks_are_refused(task: Any) -> None:
    for option, value in (("classes", "a,b"), ("split", "test"), ("index", "there.json")):
        data = DataOptions(root="here", **{option: value})
        if option in task.data_options:
            check_data_options(data, task)
        else:
            with pytest.raises(ValueError, match=rf"data\.{option} is for .*, not for {task.name}"):
                check_data_options(data, task)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="'pose'; known: classification, detection, segmentation"):
        get_task("pose")
