"""ONNX files: whole, right, and refused where they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.checkpoints.folder import digest
from mobilevit.commands.export import export
from mobilevit.data.preprocessing import frame_image, preprocess
from mobilevit.exports import wrap
from mobilevit.exports.backends.onnx import backend as onnx_module
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import ExportError, ExportSpec, MissingExtraError, file_preprocessing
from mobilevit.exports.verify import DisagreementError, verify
from mobilevit.exports.wrap import fold_normalization, prepare
from mobilevit.models.fuse import fuse
from mobilevit.tasks.detection.export import compare
from mobilevit.tasks.detection.loss_and_postprocess import detect
from mobilevit.tasks.export import suppress
from tests.numerics import assert_close, assert_probabilities_close

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

ONNX = BACKENDS["onnx"]
ODD: dict[str, Any] = {"channel_order": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
"""Values of a kind that a forgotten step would show in."""


def run(path: Path, **given: np.ndarray) -> list[np.ndarray]:
    return list(open_exported(path)(*given.values()))


def pixels(model: Any, photos: list[Image.Image]) -> np.ndarray:
    rule = file_preprocessing(model.config.preprocessing, None)
    return np.stack([np.asarray(frame_image(photo, rule)) for photo in photos])


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_photo_in_probabilities_out(
    network: Any, name: str, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network(name, **ODD)
    path = tmp_path / "ants.onnx"
    written = ONNX.write(model, ExportSpec(), path)
    assert written.inputs == ("image: uint8 [1, 64, 64, 3]",)
    assert written.outputs == ("probabilities: float32 [1, 5]",)
    expected = [item.probabilities for item in mobilevit.predict(model, *photos)]
    found = [run(path, image=row[None])[0][0] for row in pixels(model, photos)]
    assert_probabilities_close(found, expected)
    assert np.abs(found[0] - found[1]).max() > 0.01  # the photos are told apart


def test_file_says_what_it_is(network: Any, tmp_path: Path) -> None:
    model = network("mobilevit_xxs", **ODD)
    path = tmp_path / "ants.onnx"
    ONNX.write(model, ExportSpec(), path)
    texts = open_exported(path).session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["classes"]) == [f"ant {number}" for number in range(5)]
    assert json.loads(texts["preprocessing"])["channel_order"] == "bgr"
    assert (texts["model"], texts["task"]) == ("mobilevit_xxs", "classification")
    assert texts["source"] == "a test" and "a test" in texts["licence"]
    assert texts["weights_sha256"] == digest(model.state_dict())
    import onnx

    file = onnx.load(path)
    assert {one.domain: one.version for one in file.opset_import}[""] == onnx_module.OPSET
    assert file.ir_version == onnx_module.IR_VERSION
    assert str(Path(mobilevit.__file__).parent) not in str(path.read_bytes())
    operations = {node.op_type for node in file.graph.node}
    assert not operations & {"Resize", "BatchNormalization", "Gather", "If"}


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_rows_of_a_batch_keep_their_order(
    network: Any, name: str, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network(name)
    path = tmp_path / "ants.onnx"
    written = ONNX.write(model, ExportSpec(dynamic="batch"), path)
    assert written.inputs == ("image: uint8 [batch, 64, 64, 3]",)
    images = pixels(model, photos)
    tensors = torch.stack([preprocess(photo, model.config.preprocessing) for photo in photos])
    with torch.inference_mode():
        expected = fuse(model)(tensors).softmax(-1).numpy()
    assert np.abs(expected[0] - expected[2]).max() > 1e-3  # another order would show
    for count in (3, 1):
        (found,) = run(path, image=images[:count])
        assert_probabilities_close(found, expected[:count])


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_any_size(network: Any, name: str, tmp_path: Path) -> None:
    model = network(name)
    path = tmp_path / "ants.onnx"
    written = ONNX.write(model, ExportSpec(dynamic="size", raw=True), path)
    assert written.inputs == ("tensor: float32 [1, 3, height, width]",)
    fused = fuse(model)
    for size in ((256, 256), (224, 224), (192, 320), (50, 71)):
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = fused(x).numpy()
        assert_close(run(path, tensor=x.numpy())[0], expected)


def test_boxes_are_those_of_pytorch(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("ssdlite_mobilevit_xxs", **ODD)
    path = tmp_path / "ants.onnx"
    ONNX.write(model, ExportSpec(dynamic="batch"), path)
    tensors = torch.stack([preprocess(photo, model.config.preprocessing) for photo in photos])
    with torch.inference_mode():
        expected = detect(fuse(model), tensors, [(1, 1)] * len(photos))
    found = run(path, image=pixels(model, photos))
    assert [part.shape[2:] for part in found] == [(4,), (), ()]
    for truth, boxes, scores, labels in zip(expected, *found, strict=True):
        count = len(truth.scores)
        assert count > 10 and (labels[:count] >= 0).all() and (labels[count:] == -1).all()
        assert_probabilities_close(scores[:count], truth.scores)
        assert_close(boxes[:count], truth.boxes, tolerance=1e-3)
        assert labels[:count].tolist() == truth.labels.tolist()
        assert not scores[count:].any() and not boxes[count:].any()


def test_mask_is_that_of_pytorch(network: Any, tmp_path: Path, photos: list[Image.Image]) -> None:
    model = network("deeplabv3_mobilevit_xxs")
    path = tmp_path / "ants.onnx"
    written = ONNX.write(model, ExportSpec(), path)
    assert written.outputs == ("mask: uint8 [1, 64, 64]",)
    images = pixels(model, photos[:1])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = fuse(model)(tensors).argmax(1).numpy()
    (found,) = run(path, image=images)
    assert (found == expected).mean() > 0.999 and len(np.unique(found)) > 1


def test_half_precision_is_half_the_size(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("mobilevitv2_050", **ODD)
    sizes = []
    for precision in ("fp32", "fp16"):
        ONNX.write(model, ExportSpec(precision=precision), tmp_path / "ants.onnx")  # type: ignore[arg-type]
        sizes.append((tmp_path / "ants.onnx").stat().st_size)
    assert sizes[1] < 0.62 * sizes[0]  # what float16 would spoil stays float32
    verification = verify(open_exported(tmp_path / "ants.onnx"), model, photos, name="ants")
    assert verification.tolerance == 1e-2 and verification.agreement == 1


def test_suppression_is_within_classes_and_images() -> None:
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [0.5, 0.5, 0.6, 0.6]])
    scores = torch.tensor([[[0.9, 0.8, 0.7], [0.1, 0.2, 0.0]], [[0.0, 0.5, 0.0], [0.0] * 3]])
    kept = suppress(box.expand(2, 3, 4), scores, 3, 0.5, 0.01)
    assert kept.tolist() == [[0, 0, 0], [0, 0, 2], [0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize("name", ["mobilevit_xxs", "ssdlite_mobilevit_xxs"])
def test_a_wrong_file_is_not_written(
    network: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(name, channel_order="bgr")

    def wrong(network: Any, preprocessing: Any) -> torch.Tensor:
        return fold_normalization(network, replace(preprocessing, channel_order="rgb"))

    monkeypatch.setattr(wrap, "fold_normalization", wrong)
    out = tmp_path / "ants.onnx"
    with pytest.raises(DisagreementError, match=r"ants\.onnx does not agree with PyTorch"):
        export(model, ExportOptions(out=str(out)))
    assert list(tmp_path.iterdir()) == []


def test_command(network: Any, tmp_path: Path) -> None:
    folder = mobilevit.save(network("mobilevit_xxs"), tmp_path / "ants")
    out = tmp_path / "new" / "ants.onnx"
    exported = export(
        str(folder), ExportOptions(out=str(out), raw=True, preprocessing={"mean": (0.1, 0.1, 0.1)})
    )
    assert exported.exit_code == 0 and exported.size == out.stat().st_size
    assert exported.verification.images == 2 and exported.verification.difference < 1e-3
    text = str(exported)
    assert "tensor: float32 [1, 3, 64, 64]" in text and "bound 0.001" in text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ssdlite_mobilevit_xxs", {"dynamic": "size"}, "anchors belong to one size"),
        ("pspnet_mobilevitv2_050", {"dynamic": "size"}, "one file for each size"),
        ("mobilevit_xxs", {"dynamic": "depth"}, "dynamic is batch or size"),
    ],
)
def test_refusals_help(
    network: Any, name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(network(name), ExportOptions(out=str(tmp_path / "ants.onnx"), **options))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mobilevit\[onnx\]'"):
        export(network("mobilevit_xxs"), ExportOptions(out=str(tmp_path / "ants.onnx")))


def test_boxes_that_are_off_or_missing_count(network: Any, photos: list[Image.Image]) -> None:
    model = network("ssdlite_mobilevit_xxs")
    tensors = preprocess(photos[0], model.config.preprocessing)[None]
    module = prepare(model, ExportSpec()).module
    with torch.inference_mode():
        said = module(torch.from_numpy(pixels(model, photos[:1])))
        boxes, scores, labels = said

        def difference(*said: torch.Tensor) -> float:
            return float(compare(model, tensors, said, 1e-3).difference)

        assert difference(*said) < 1e-4
        assert difference(boxes + torch.tensor([0.01, 0, 0, 0]), scores, labels) > 2e-3
        assert difference(boxes, scores + 0.01, labels) > 2e-3
        others = labels != labels[0, 0]  # all of the likeliest box's class are left out
        assert others.any()
        left = (boxes[:, others[0]], scores[:, others[0]], labels[:, others[0]])
        assert difference(*left) == pytest.approx(float(scores[0, 0]), abs=1e-4)
