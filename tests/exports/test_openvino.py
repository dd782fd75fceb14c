"""OpenVINO files: whole, right, and refused where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.spec import ExportError, ExportSpec, Quantization, file_preprocessing
from mobilevit.exports.verify import verify
from mobilevit.models.fuse import fuse
from tests.numerics import assert_close

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

# torch's exporter, onnxscript and nncf use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

OPENVINO = BACKENDS["openvino"]
ODD: dict[str, Any] = {"channel_order": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


@pytest.fixture(scope="module")
def ants(network: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A classifier, and its file of any number of images."""
    model = network("mobilevit_xxs", **ODD)
    path = tmp_path_factory.mktemp("openvino") / "ants.openvino"
    written = OPENVINO.write(model, ExportSpec(dynamic="batch"), path)
    assert written.inputs == ("image: uint8 [batch, 64, 64, 3]",)
    assert written.outputs == ("probabilities: float32 [batch, 5]",)
    assert set(written.types) == {"float32"} and sum(written.types.values()) == written.operations
    return model, path


def test_says_what_pytorch_says(ants: tuple[Any, Path], photos: list[Image.Image]) -> None:
    model, path = ants
    assert {file.name for file in path.iterdir()} == {"model.xml", "model.bin"}
    verification = verify(open_exported(path), model, photos, name="ants")
    assert verification.images == 3 and verification.difference < 1e-3
    rule = file_preprocessing(model.config.preprocessing, None)
    images = np.stack([np.asarray(frame_image(photo, rule)) for photo in photos])
    (said,) = open_exported(path)(images)
    assert np.abs(said[0] - said[1]).max() > 0.01  # the photos are told apart


def test_facts_are_inside(ants: tuple[Any, Path]) -> None:
    model, path = ants
    run = open_exported(path)
    assert run.metadata.config.classes == model.config.classes
    assert run.metadata.config.preprocessing.channel_order == "bgr"
    assert run.runtime.startswith("openvino 20") and run.runtime.count(".") == 2


def test_other_folders_are_refused(ants: tuple[Any, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.openvino").mkdir()
    with pytest.raises(ExportError, match=r"holds no model\.xml"):
        open_exported(tmp_path / "empty.openvino")
    damaged = Path(shutil.copytree(ants[1], tmp_path / "damaged.openvino"))
    (damaged / "model.bin").write_bytes(b"")
    with pytest.raises(ExportError, match="that OpenVINO runs"):
        open_exported(damaged)
    with pytest.raises(ExportError, match=r"float32 \[1, 64, 64, 4\]"):
        open_exported(ants[1])(np.zeros((1, 64, 64, 4), np.float32))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_any_size(network: Any, name: str, tmp_path: Path) -> None:
    model = network(name)
    written = OPENVINO.write(
        model, ExportSpec(dynamic="size", raw=True), tmp_path / "ants.openvino"
    )
    assert written.inputs == ("tensor: float32 [1, 3, height, width]",)
    run, fused = open_exported(tmp_path / "ants.openvino"), fuse(model)
    for size in ((256, 256), (224, 224), (192, 320), (50, 71)):
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = fused(x).numpy()
        assert_close(run(x.numpy())[0], expected)


@pytest.mark.parametrize("name", ["ssdlite_mobilevit_xxs", "deeplabv3_mobilevit_xxs"])
def test_boxes_and_masks(
    network: Any, name: str, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network(name, **ODD)
    OPENVINO.write(model, ExportSpec(), tmp_path / "ants.openvino")
    verification = verify(open_exported(tmp_path / "ants.openvino"), model, photos, name="ants")
    assert verification.difference < 1e-3 and verification.agreement > 0.999


def test_half_precision_and_int8_are_smaller(
    ants: tuple[Any, Path], tmp_path: Path, photos: list[Image.Image]
) -> None:
    model, path = ants
    whole = (path / "model.bin").stat().st_size
    half = OPENVINO.write(model, ExportSpec(precision="fp16"), tmp_path / "half.openvino")
    assert half.types["float16"] > half.types["float32"]
    assert (half.path / "model.bin").stat().st_size < 0.6 * whole
    verification = verify(open_exported(half.path), model, photos, name="half")
    assert verification.tolerance == 1e-2 and verification.difference < 1e-2

    kept = "network.backbone.stages.2.1.layers.0.attention.qkv"
    asked = Quantization(mode="int8", images=tuple(photos), float_layers=frozenset({kept}))
    eighth = OPENVINO.write(model, ExportSpec(quantize=asked), tmp_path / "int8.openvino")
    assert eighth.types["int8"] == 71  # of 72
    assert (eighth.path / "model.bin").stat().st_size < 0.4 * whole
    run = open_exported(eighth.path)
    assert run.metadata.quantize == "int8"
    assert verify(run, model, photos, name="int8").agreement == 1
