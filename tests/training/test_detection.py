"""Training a detector, whole, on images that are made here; evaluating and using it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import preprocess
from mobilevit.tasks.detection.options import DetectionOptions
from mobilevit.tasks.detection.postprocess import PRESETS, detections
from mobilevit.tasks.detection.transforms import BoxAugmentOptions
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import SamplerOptions
from tests.numerics import assert_close
from tests.training.runs import STANDARD, small

pytestmark = pytest.mark.slow

COLOURS = {"röd": (200, 30, 30), "blå": (30, 30, 200)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A YOLO data set: one or two coloured squares on noise, and images with nothing in them.

    Those to evaluate by are some of those to train on: so few steps teach no more than these.
    """
    root = tmp_path_factory.mktemp("yolo set")
    for split, count in (("train", 15), ("val", 8)):
        draw = np.random.default_rng(0)
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            height, width = 96, 128
            pixels = draw.integers(90, 150, (height, width, 3)).astype(np.uint8)
            lines = []
            for half in range(number % 3):
                label = int(draw.integers(2))
                side = int(draw.integers(30, 50))
                x = int(draw.integers(0, width // 2 - side)) + half * width // 2
                y = int(draw.integers(0, height - side))
                pixels[y : y + side, x : x + side] = list(COLOURS.values())[label]
                centre = (x + side / 2) / width, (y + side / 2) / height
                size = side / width, side / height
                lines.append(" ".join(map(str, (label, *centre, *size))))
            Image.fromarray(pixels).save(root / "images" / split / f"bild {number}.PNG")
            (root / "labels" / split / f"bild {number}.txt").write_text("\n".join(lines))
    names = json.dumps(list(COLOURS))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return root


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "squares"
    result = small(
        task="detection",
        model="ssdlite_mobilevit_xxs",
        root=squares,
        out=out,
        epochs=20,
        size=96,
        batch_size=4,
        sampler=SamplerOptions(min_size=80, max_size=96, scales=2, multiple=16),
        task_options=DetectionOptions(augment=BoxAugmentOptions(crop=0.0, photometric=0.0)),
        ema=0.9,
    )
    return out, result


def test_a_detector_learns(run):
    out, result = run
    with (out / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.8 * losses[0]
    assert result.metrics.images == 8
    assert result.metrics.classes == tuple(COLOURS)
    text = str(result)
    assert "AP50" in text and "on 7 boxes in 8 validation images" in text
    config = mobilevit.load(out / "model").config
    assert config.task == "detection"
    assert config.category_ids == (0, 1)
    assert config.preprocessing.resize_mode == "stretch"
    assert config.preprocessing.crop == 96
    assert "val_ap50" in (out / "metrics.csv").read_text()


def test_the_report_is_whole(run):
    out, _ = run
    text = (out / "report.html").read_text()
    for part in ("AP50", "Precision and recall", "AP by size", "True and predicted boxes", "röd"):
        assert part in text
    assert "80 × 80" in text and "96 × 96" in text
    assert text.count("data:image/jpeg") >= 8
    assert "http" not in text.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_it_is_evaluated_again_from_the_command_line(run, squares, tmp_path, capsys):
    out, result = run
    file = tmp_path / "figures.json"
    words = ["evaluate", str(out / "model"), "--data.root", str(squares / "data.yaml")]
    assert main([*words, "--sizes", "96,128", "--out", str(file)]) == 0
    text = capsys.readouterr().out
    assert "ap_medium" in text and "röd" in text and "128 px" in text
    figures = json.loads(file.read_text())["sizes"]["96"]
    assert figures["ap"] == pytest.approx(result.metrics.ap, abs=1e-6)
    assert figures["images"] == 8
    assert main([*words, "--data.split", "train"]) == 0
    assert " 15 " in capsys.readouterr().out
    assert main([*words, "--data.split", "test"]) == 1
    assert "no split 'test'" in capsys.readouterr().err


def test_predictions_are_the_networks(run, squares, tmp_path):
    """In pixels of the file, in every output, whatever so short a training has learned."""
    out, _ = run
    photo = squares / "images" / "train" / "bild 1.PNG"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    answers = tmp_path / "answers"
    result = mobilevit.predict(out / "model", photo, broken, out=str(answers), score=0.0)
    assert result.exit_code == 1
    assert len(result.failed) == 1
    model = mobilevit.load(out / "model")
    rule = replace(PRESETS["later"], score=0.0)
    with Image.open(photo) as image, torch.inference_mode():
        images = preprocess(image, model.config.preprocessing)[None]
        anchors = model.anchors(*images.shape[-2:])
        (expected,) = detections(model(images), anchors, [(96, 128)], rule)
    boxes = result[0].boxes
    assert len(boxes) == len(expected.scores) > 0
    assert_close([box.corners for box in boxes], expected.boxes)
    assert [box.name for box in boxes] == [list(COLOURS)[label] for label in expected.labels]
    coco = json.loads((answers / "detections.json").read_text())
    assert coco["categories"] == [{"id": 0, "name": "röd"}, {"id": 1, "name": "blå"}]
    assert coco["images"][0]["file_name"] == str(photo)
    assert [one["category_id"] for one in coco["annotations"]] == expected.labels.tolist()
    x1, y1, x2, y2 = boxes[0].corners
    assert coco["annotations"][0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
    with Image.open(answers / "1-bild_1.jpg") as drawn:
        assert drawn.width > 128
    rows = [json.loads(row) for row in (answers / "predictions.jsonl").read_text().splitlines()]
    assert [box["class"] for box in rows[0]["boxes"]] == [box.name for box in boxes]
    assert "error" in rows[1]


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_what_is_printed(run, squares, capsys, form):
    out, _ = run
    photo = str(squares / "images" / "train" / "bild 1.PNG")
    assert main(["predict", str(out / "model"), photo, "--format", form, "--score", "0"]) == 0
    text = capsys.readouterr().out
    assert "bild 1.PNG" in text
    assert "röd" in text or "blå" in text


def test_a_strange_voc_set_trains_as_it_lies(squares, tmp_path):
    """XML beside the images, in nested folders with blanks, no splits, a file turned by EXIF."""
    root = tmp_path / "from Åsa"
    for number, photo in enumerate(sorted((squares / "images").rglob("*.PNG"))):
        folder = root / f"batch {number % 3}" / "raw data"
        folder.mkdir(parents=True, exist_ok=True)
        label = squares / "labels" / photo.parent.name / f"{photo.stem}.txt"
        objects = ""
        for line in label.read_text().splitlines():
            kind, x, y, width, height = (float(value) for value in line.split())
            corners = (x - width / 2) * 128, (y - height / 2) * 96
            ends = (x + width / 2) * 128, (y + height / 2) * 96
            objects += (
                f"<object><name>{list(COLOURS)[int(kind)]}</name><bndbox>"
                f"<xmin>{corners[0] + 1}</xmin><ymin>{corners[1] + 1}</ymin>"
                f"<xmax>{ends[0]}</xmax><ymax>{ends[1]}</ymax></bndbox></object>"
            )
        with Image.open(photo) as image:
            exif = Image.Exif()
            exif[0x0112] = 3 if number == 4 else 1
            image.save(folder / f"no {number}.JPG", "JPEG", exif=exif)
        (folder / f"no {number}.xml").write_text(
            f"<annotation><size><width>0</width><height>0</height></size>{objects}</annotation>"
        )
    result = small(
        root, tmp_path / "run", model="ssdlite_mobilevit_xxs", epochs=1, sampler=STANDARD
    )
    assert result.metrics.classes == tuple(sorted(COLOURS))
    assert result.metrics.images + 18 == 23


def test_the_task_its_options_and_the_model_must_agree(squares, tmp_path):
    with pytest.raises(TrainingError, match=r"mobilevit_xs is for classification; for detection"):
        small(squares, tmp_path / "run", task="detection", model="mobilevit_xs")
    options = DetectionOptions()
    with pytest.raises(TrainingError, match=r"detection options are not for mobilevit_xs"):
        small(squares, tmp_path / "run", task_options=options, model="mobilevit_xs")
    with pytest.raises(ValueError, match=r"detection options are not for classification"):
        small(squares, tmp_path / "run", task_options=options, task="classification")
    data = DataOptions(root=str(squares), ignore=3)
    with pytest.raises(ValueError, match=r"data\.ignore is for segmentation, not for detection"):
        small(squares, tmp_path / "run", data=data, model="ssdlite_mobilevit_xxs")


def test_broken_images_are_named_or_skipped(squares, tmp_path):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(squares, root)
    (root / "images" / "train" / "bild 0.PNG").write_bytes(b"no image")
    options = {"model": "ssdlite_mobilevit_xxs", "epochs": 1, "sampler": STANDARD}
    with pytest.raises(ValueError, match=r"images that cannot be read: 1.*\n.*bild 0\.PNG"):
        small(root, tmp_path / "run", **options)
    data = DataOptions(root=str(root), workers=0, on_bad="skip")
    result = small(root, tmp_path / "run", data=data, **options)
    assert result.metrics.images == 8


def test_check_looks_at_boxes(squares, capsys):
    assert main(["check", str(squares), "--task", "detection"]) == 0
    assert "röd" in capsys.readouterr().out
