"""`mobilevit export` on labelled images: accuracy of both, and what quantising may cost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.checkpoints.create import load
from mobilevit.commands.export import export, sample_images, split_images
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.accuracy import Evaluator, spread
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.result import Accuracy
from mobilevit.exports.spec import ExportError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
    ),
]


def data(root: Path, **options: Any) -> DataOptions:
    return DataOptions(root=str(root), **{"workers": 0, **options})


def test_both_are_evaluated(
    colours: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "colours.onnx"
    exported = export(colours, out=str(out), data=data(images))
    accuracy = exported.accuracy
    assert accuracy is not None and accuracy.measure == "top-1"
    assert accuracy.pytorch == mobilevit.evaluate(colours, data=data(images)).metrics.top1
    assert accuracy.file == mobilevit.evaluate(out, data=data(images)).metrics.top1
    assert (accuracy.images, accuracy.available) == (21, 21)
    assert exported.verification.images == 21  # its own, not the two samples
    assert exported.fp32_size is None
    words = ["export", str(colours), "--out", str(out), "--limit", "9"]
    assert main([*words, "--data.root", str(images), "--data.workers", "0"]) == 0
    assert "in the file, 9 of 21 images" in capsys.readouterr().out


def test_a_line_for_people() -> None:
    options: dict[str, Any] = {"measure": "mean IoU", "file": 0.5, "images": 60, "available": 60}
    text = str(Accuracy(pytorch=0.575, own_shape=0.594, **options))
    assert text == (
        "mean IoU 57.5% in PyTorch (59.4% without stretching), 50.0% in the file, 60 images"
    )
    assert Accuracy(pytorch=0.575, **options).drop == pytest.approx(7.5)


def test_places_are_spread() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread([5, 7], 4) == [5, 7]


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.array_equal(np.asarray(one), np.asarray(other))


def overlap(evaluator: Evaluator) -> int:
    """How many of the images that ranges are measured on are evaluated."""
    evaluated = [evaluator.samples.name(place) for place in range(len(evaluator.samples.labels))]  # type: ignore[union-attr]
    images = [load_framed(evaluator, name) for name in evaluated]
    return sum(any(same(one, other) for other in images) for one in evaluator.calibration_images())


def load_framed(evaluator: Evaluator, name: str) -> Image.Image:
    with Image.open(name) as image:
        return image.convert("RGB")


def test_ranges_are_measured_on_the_training_part(
    colours: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "set" / "train")
    for name in ("red", "green", "blue"):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        moved = tmp_path / "set" / "train" / name / "0.png"
        moved.rename(tmp_path / "set" / "val" / name / "0.png")
    network = load(colours)
    evaluate = Evaluator(network, data(tmp_path / "set"), dynamic=None, calibrate=True)
    assert evaluate.available == 3 and len(evaluate.comparison_images()) == 3
    assert len(evaluate.calibration_images()) == 18 and overlap(evaluate) == 0


@pytest.mark.parametrize("limit", [500, 4])
def test_no_image_is_both_measured_and_evaluated(colours: Path, images: Path, limit: int) -> None:
    evaluate = Evaluator(load(colours), data(images), dynamic=None, limit=limit, calibrate=True)
    evaluated = len(evaluate.samples.labels)  # type: ignore[union-attr]
    assert evaluated == min(
        limit, 16
    )  # of 21, five are kept to measure on where all would be evaluated
    assert len(evaluate.calibration_images()) >= 5 and overlap(evaluate) == 0


def test_large_images_are_held_small(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "red").mkdir(parents=True)
    photo = sample_images()[0]
    photo.save(tmp_path / "set" / "red" / "0.png")
    network = load(colours)
    evaluate = Evaluator(network, data(tmp_path / "set"), dynamic=None)
    (held,) = evaluate.comparison_images()
    rule = network.config.preprocessing
    assert min(held.size) == rule.resize < min(photo.size)
    assert same(frame_image(held, rule), frame_image(photo, rule))


def test_photos_that_ranges_are_measured_on_are_not_compared() -> None:
    photos = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(12)]
    compared, measured = split_images(photos)
    assert (len(compared), len(measured)) == (3, 9)
    assert not any(same(one, other) for one in compared for other in measured)
    assert split_images(photos[:3]) == (photos[:3], photos[:3])


def test_all_photos_are_compared_where_nothing_is_measured(
    colours: Path, images: Path, tmp_path: Path
) -> None:
    exported = export(
        colours,
        ExportOptions(
            out=str(tmp_path / "colours.onnx"),
            images=[str(images)],
            quantize="int8-weights",
            least_agreement=0.0,
        ),
    )
    assert exported.verification.images == 21
    assert not any("same images" in note for note in exported.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "auto"}, "give labelled images by data.root"),
        (
            {"quantize": "int3"},
            "'int3' is not available for onnx files: it must be one of int8, .*auto",
        ),
        ({"limit": 5}, "limit needs labelled images"),
        ({"max_drop": 1.0, "quantize": "int8"}, "max_drop needs labelled images"),
        ({"least_agreement": 0.5}, "least_agreement is for quantized files"),
        (
            {"least_agreement": 50.0, "quantize": "int8"},
            r"least_agreement must be in \[0, 1\], not 50",
        ),
    ],
)
def test_options_that_do_not_fit(
    colours: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export(colours, ExportOptions(out=str(tmp_path / "new" / "colours.onnx"), **options))
    assert not (tmp_path / "new").exists()


def test_an_exported_file_is_not_exported_again(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="export the model that it was made from"):
        export("colours.onnx", ExportOptions(out=str(tmp_path / "colours.onnx")))


def test_limits_on_data_that_do_not_fit(colours: Path, images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "colours.onnx")
    for options, message in (
        ({"limit": 0}, "at least 1"),
        ({"max_drop": 1.0}, "max_drop is for quantized files"),
        ({"max_drop": 100.0, "quantize": "int8"}, r"max_drop must be in \[0, 100\)"),
    ):
        with pytest.raises(ValueError, match=message):
            export(colours, ExportOptions(out=out, data=data(images), **options))  # type: ignore[arg-type]
