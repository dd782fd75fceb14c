"""Training a network for segmentation, whole, on images that are made here; using it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import mobilevit
from mobilevit.__main__ import main
from mobilevit.data.preprocessing import preprocess
from mobilevit.tasks.segmentation.options import SegmentationOptions
from mobilevit.tasks.segmentation.transforms import SegmentationAugment
from mobilevit.training.options import OptimOptions, SamplerOptions
from tests.training.runs import STANDARD, small

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Images of bright and dark fields with their masks; a border without a class."""
    root = tmp_path_factory.mktemp("shapes")
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            height, width = 72, 96
            mask = np.zeros((height, width), np.uint8)
            x, y = draw.integers(8, 40, 2)
            mask[y : y + 30, x : x + 40] = 1
            grey = np.where(mask == 1, 220, 40) + draw.integers(-15, 15, mask.shape)
            mask[:2] = 255
            image = np.repeat(grey.astype(np.uint8)[..., None], 3, 2)
            Image.fromarray(image).save(root / split / "images" / f"{number}.jpg", quality=95)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    return root


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "shapes"
    result = small(
        task="segmentation",
        model="deeplabv3_mobilevit_xxs",
        root=shapes,
        out=out,
        epochs=8,
        size=64,
        batch_size=4,
        sampler=SamplerOptions(min_size=64, max_size=96),
        task_options=SegmentationOptions(
            augment=SegmentationAugment(scale=(0.9, 1.2), photometric=0.0)
        ),
        optim=OptimOptions(lr=0.001, head_lr=3.0),
        ema=0.9,
    )
    return out, result


def test_a_network_learns(run):
    out, result = run
    with (out / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.8 * losses[0]
    assert result.metrics.images == 6
    assert result.metrics.classes == ("dark", "bright")
    assert "mean IoU" in str(result)
    config = mobilevit.load(out / "model").config
    assert config.task == "segmentation"
    assert config.preprocessing.resize_mode == "shortest_edge"
    text = (out / "report.html").read_text()
    for part in ("Mean IoU", "bright", "Worst images", "Correct pixels"):
        assert part in text
    assert text.count("data:image/jpeg") == 2 * (6 + 6)


def test_it_is_evaluated_again_from_the_command_line(run, shapes, tmp_path, capsys):
    out, result = run
    file = tmp_path / "figures.json"
    words = ["evaluate", str(out / "model"), "--data.root", str(shapes)]
    assert main([*words, "--sizes", "64,96", "--boundary", "2", "--out", str(file)]) == 0
    text = capsys.readouterr().out
    assert "bright" in text and "96 px" in text
    figures = json.loads(file.read_text())["sizes"]["64"]
    assert figures["miou"] == pytest.approx(result.metrics.miou, abs=1e-6)
    assert 0 <= figures["boundary_miou"] <= 1
    assert main([*words, "--boundary", "-1"]) == 1


def test_photos_of_any_size_are_segmented_at_their_own(run, shapes, tmp_path):  # A32
    out, _ = run
    photo = np.full((75, 133, 3), 40, np.uint8)
    photo[20:60, 30:100] = 220
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    answers = tmp_path / "answers"
    result = mobilevit.predict(
        out / "model",
        tmp_path / "photo.png",
        tmp_path / "broken.jpg",
        shapes / "val" / "images" / "0.jpg",
        out=str(answers),
    )
    assert result.exit_code == 1
    mask = result[0].mask
    assert mask.shape == (75, 133)
    assert set(np.unique(mask)) <= {0, 1}
    model = mobilevit.load(out / "model")
    with torch.inference_mode():
        logits = model(preprocess(Image.fromarray(photo), model.config.preprocessing)[None])
        expected = F.interpolate(logits, mask.shape, mode="bilinear").argmax(1)[0]
    assert np.array_equal(mask, expected)
    share = float((mask == 0).mean())
    assert {one.name: one.share for one in result[0].shares}.get("dark", 0) == pytest.approx(share)
    with Image.open(answers / "1-photo.png") as index:
        assert index.mode == "P"
        assert np.array_equal(np.asarray(index), mask)
    with Image.open(answers / "1-photo.jpg") as drawn:
        assert drawn.width == 133
    with Image.open(answers / "1-photo-mask.png") as coloured:
        assert coloured.size == (133, 75)
        assert coloured.mode == "RGB"
    rows = [json.loads(row) for row in (answers / "predictions.jsonl").read_text().splitlines()]
    assert [one["class"] for one in rows[0]["classes"]] == [one.name for one in result[0].shares]
    assert "error" in rows[1]


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_what_is_printed(run, shapes, capsys, form):
    out, _ = run
    photo = str(shapes / "val" / "images" / "0.jpg")
    assert main(["predict", str(out / "model"), photo, "--format", form]) == 0
    text = capsys.readouterr().out
    assert "0.jpg" in text and ("dark" in text or "bright" in text)


def test_batches_of_one_train(shapes, tmp_path):
    result = small(
        model="pspnet_mobilevitv2_050",
        root=shapes,
        out=tmp_path / "run",
        epochs=1,
        size=64,
        batch_size=1,
        sampler=STANDARD,
    )
    assert result.metrics.images == 6
    assert np.isfinite(result.metrics.miou)


def test_a_run_is_resumed(shapes, tmp_path):
    options = {"model": "deeplabv3_mobilevit_xxs", "size": 64, "sampler": STANDARD}
    small(shapes, tmp_path / "run", epochs=1, **options)
    small(shapes, tmp_path / "run", epochs=2, resume=True, **options)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]


def test_check_looks_at_masks(shapes, capsys):
    assert main(["check", str(shapes), "--task", "segmentation"]) == 0
    assert "bright" in capsys.readouterr().out
