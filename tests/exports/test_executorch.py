"""ExecuTorch programs: right, delegated, and refused where they are not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mobilevit
from mobilevit.checkpoints.folder import digest
from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.base import FileSummary
from mobilevit.exports.backends.executorch import backend as executorch
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.spec import ExportError, ExportSpec, Quantization, file_preprocessing
from mobilevit.exports.verify import verify
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import TransformerLayer
from tests.numerics import assert_close, assert_probabilities_close

pytest.importorskip("executorch")

EXECUTORCH = BACKENDS["executorch"]
ODD: dict[str, Any] = {"channel_order": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
"""Values of a kind that a forgotten step would show in."""


def shallow(model: Any) -> Any:
    """A network with one transformer layer a block: lowering takes time for each operation."""
    for stage in model.backbone.stages:
        layers = getattr(stage[-1], "transformer", ())
        for index in reversed(range(1, len(layers))):
            if isinstance(layers[index], TransformerLayer):
                del layers[index]
    return model


def pixels(model: Any, photos: list[Image.Image]) -> np.ndarray:
    rule = file_preprocessing(model.config.preprocessing, None)
    return np.stack([np.asarray(frame_image(photo, rule)) for photo in photos])


@pytest.fixture(scope="module")
def whole(network: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FileSummary]:
    """A classifier, and its file."""
    model = shallow(network("mobilevit_xxs", **ODD))
    path = tmp_path_factory.mktemp("executorch") / "ants.pte"
    return model, EXECUTORCH.write(model, ExportSpec(), path)


def test_photo_in_probabilities_out(
    whole: tuple[Any, FileSummary], photos: list[Image.Image], capfd: pytest.CaptureFixture[str]
) -> None:
    model, written = whole
    assert written.inputs == ("image: uint8 [1, 64, 64, 3]",)
    assert written.outputs == ("probabilities: float32 [1, 5]",)
    run = open_exported(written.path)
    assert run.runtime.startswith("executorch ") and run.runtime.endswith(" (XNNPACK)")
    expected = [item.probabilities for item in mobilevit.predict(model, *photos)]
    found = [run(row[None])[0][0] for row in pixels(model, photos)]
    assert_probabilities_close(found, expected)
    assert np.abs(found[0] - found[1]).max() > 0.01  # the photos are told apart
    assert capfd.readouterr().err == ""  # the runtime's own talk is kept off the screen


def test_xnnpack_takes_the_network_whole(whole: tuple[Any, FileSummary]) -> None:
    _, written = whole
    assert "100.0% of the multiply-adds, in 1 part" in written.placement
    assert written.placement.endswith("kernels take 1 _to_dim_order_copy, 1 permute_copy")
    assert written.types == {"float32": written.operations - 1, "uint8": 1}


def test_file_says_what_it_is(whole: tuple[Any, FileSummary]) -> None:
    from executorch.runtime import Runtime

    model, written = whole
    program = Runtime.get().load_program(written.path)
    texts = {
        name: program.load_method(name).execute([])[0]
        for name in program.method_names
        if name != "forward"
    }
    assert json.loads(texts["classes"]) == [f"ant {number}" for number in range(5)]
    assert json.loads(texts["preprocessing"])["channel_order"] == "bgr"
    assert (texts["model"], texts["task"]) == ("mobilevit_xxs", "classification")
    assert json.loads(texts["inputs"]) == ["image"]
    assert json.loads(texts["outputs"]) == ["probabilities"]
    assert texts["weights_sha256"] == digest(model.state_dict())
    assert open_exported(written.path).facts.config == model.config
    assert str(Path(mobilevit.__file__).parent).encode() not in written.path.read_bytes()


def test_files_on_different_threads_take_turns(
    whole: tuple[Any, FileSummary], photos: list[Image.Image]
) -> None:
    model, written = whole
    runs = [open_exported(written.path, threads=threads) for threads in (1, 2, 1)]
    image = pixels(model, photos[:1])
    answers = [run(image)[0] for _ in range(2) for run in runs]
    for answer in answers[1:]:
        assert_probabilities_close(answer, answers[0])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 64, 64, 3), np.uint8),
        np.zeros((1, 64, 65, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
    ],
)
def test_other_images_are_refused(whole: tuple[Any, FileSummary], images: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"takes uint8 \[1, 64, 64, 3\], not"):
        open_exported(whole[1].path)(images)


def test_rows_of_a_batch_keep_their_order(network: Any, tmp_path: Path) -> None:
    model = shallow(network("mobilevitv2_050"))
    request = ExportSpec(dynamic="batch", raw=True)
    written = EXECUTORCH.write(model, request, tmp_path / "ants.pte")
    assert written.inputs == ("tensor: float32 [batch <= 8, 3, 64, 64]",)
    run = open_exported(written.path)
    x = torch.rand(8, 3, 64, 64)
    with torch.inference_mode():
        expected = fuse(model)(x).numpy()
    for count in (3, 1, 8):
        (found,) = run(x[:count].numpy())
        assert_close(found, expected[:count])
    with pytest.raises(ExportError, match=r"takes float32 \[1 to 8, 3, 64, 64\]"):
        run(np.zeros((9, 3, 64, 64), np.float32))


def test_any_size(network: Any, tmp_path: Path) -> None:
    model = shallow(network("mobilevit_xxs"))
    written = EXECUTORCH.write(model, ExportSpec(dynamic="size", raw=True), tmp_path / "ants.pte")
    assert written.inputs == ("tensor: float32 [1, 3, height <= 512, width <= 512]",)
    run, fused = open_exported(written.path), fuse(model)
    for size in ((256, 256), (224, 224), (192, 320), (50, 71)):
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = fused(x).numpy()
        assert_close(run(x.numpy())[0], expected)
    with pytest.raises(ExportError, match="1 to 512"):
        run(np.zeros((1, 3, 64, 513), np.float32))


def test_boxes_are_those_of_pytorch(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    # Of 128 pixels there are more anchors than suppression looks at.
    model = shallow(network("ssdlite_mobilevit_xxs", size=128, **ODD))
    written = EXECUTORCH.write(model, ExportSpec(), tmp_path / "ants.pte")
    assert [line.split(":")[0] for line in written.outputs] == ["boxes", "scores", "labels"]
    verification = verify(open_exported(written.path), model, photos, name="ants")
    assert verification.difference < 1e-3 and verification.agreement == 1


def test_half_precision_segments(network: Any, tmp_path: Path, photos: list[Image.Image]) -> None:
    model = shallow(network("deeplabv3_mobilevit_xxs"))
    written = EXECUTORCH.write(model, ExportSpec(precision="fp16"), tmp_path / "ants.pte")
    assert written.types["float16"] > 0.7 * written.operations  # what float16 would spoil apart
    images = pixels(model, photos[:1])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = fuse(model)(tensors).argmax(1).numpy()
    (found,) = open_exported(written.path)(images)
    # A new network's pixels hang by a thread; those that differ are few.
    assert (found == expected).mean() > 0.98


def test_int8(
    whole: tuple[Any, FileSummary], network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model, fp32 = whole
    kept = "network.backbone.stages.4.1.layers.0.attention.qkv"
    quantize = Quantization(mode="int8", images=tuple(photos), float_layers=frozenset({kept}))
    written = EXECUTORCH.write(model, ExportSpec(quantize=quantize), tmp_path / "ants.pte")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) - 1 <= written.types["int8"] < written.types["float32"]
    assert written.path.stat().st_size < 0.4 * fp32.path.stat().st_size
    assert "100.0% of the multiply-adds" in written.placement
    verification = verify(open_exported(written.path), model, photos, name="ants")
    assert verification.difference < 0.1


def test_core_ml_takes_the_network(network: Any, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    model = shallow(network("mobilevit_xxs"))
    prepared = BACKENDS["coreml"].prepare(model, ExportSpec())
    written = executorch.write_coreml(prepared, tmp_path / "ants.pte")
    assert written.placement.startswith("Core ML takes 100.0% of the operations")
    if sys.platform != "darwin":
        with pytest.raises(ExportError, match="is for Core ML"):
            open_exported(written.path)


class Counting(nn.Module):
    """A network that computes in integers alone."""

    def forward(self, tensor: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, 3]`."""
        return tensor.to(torch.int64).amax((2, 3))


def test_nothing_delegated_is_an_error(network: Any) -> None:
    prepared = EXECUTORCH.prepare(network("mobilevit_xxs"), ExportSpec(raw=True))
    with pytest.raises(ExportError, match="XNNPACK takes nothing of mobilevit_xxs"):
        executorch.lower(replace(prepared, module=Counting()), "xnnpack")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ExportSpec(quantize=Quantization(mode="palette4")), "cannot be quantised as palette4"),
        (
            ExportSpec(quantize=Quantization(mode="int8", float_layers=frozenset({"nose"}))),
            "there are no layers nose",
        ),
    ],
)
def test_refusals_help(network: Any, request_: ExportSpec, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        EXECUTORCH.write(network("mobilevit_xxs"), request_, Path("never.pte"))


@pytest.mark.parametrize("content", [b"", b"PNG" * 400])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ants.pte"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"ExecuTorch cannot open .*ants\.pte"):
        open_exported(path)
