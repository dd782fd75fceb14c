"""Core ML packages: whole, right, and refused where they are not."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.commands.export import export
from mobilevit.data.preprocessing import frame_image, preprocess
from mobilevit.exports import wrap
from mobilevit.exports.backends.base import FileSummary
from mobilevit.exports.backends.coreml.backend import CoremlRunner
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import ExportError, ExportSpec, Quantization, file_preprocessing
from mobilevit.exports.verify import DisagreementError, verify
from mobilevit.exports.wrap import fold_normalization, prepare
from mobilevit.models.fuse import fuse
from mobilevit.tasks.detection.loss_and_postprocess import detect
from tests.numerics import assert_close, assert_probabilities_close

pytest.importorskip("coremltools")

# coremltools, torch's exporter and what they import use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

COREML = BACKENDS["coreml"]
ODD: dict[str, Any] = {"channel_order": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
"""Values of a kind that a forgotten step would show in."""


class Package(NamedTuple):
    """A package, and the network that is in it."""

    path: Path
    network: Any
    written: FileSummary


def package(folder: Path, network: Any, **wanted: Any) -> Package:
    path = folder / "ants.mlpackage"
    return Package(path, network, COREML.write(network, ExportSpec(**wanted), path))


@pytest.fixture(scope="module")
def ants(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A classifier in float32, an image in."""
    return package(tmp_path_factory.mktemp("ants"), network("mobilevit_xxs", **ODD))


def opened(path: Path) -> CoremlRunner:
    runner = open_exported(path)
    assert isinstance(runner, CoremlRunner)
    return runner


def pixels(model: Any, photos: list[Image.Image]) -> np.ndarray:
    rule = file_preprocessing(model.config.preprocessing, None)
    return np.stack([np.asarray(frame_image(photo, rule)) for photo in photos])


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_photo_in_probabilities_out(ants: Package, photos: list[Image.Image]) -> None:
    assert ants.written.inputs == ("image: RGB image [64, 64]",)
    assert ants.written.outputs == ("probabilities: float32 [1, 5]",)
    assert ants.written.types == {"float32": ants.written.operations}
    run = opened(ants.path)
    expected = [item.probabilities for item in mobilevit.predict(ants.network, *photos)]
    found = [run(row[None])[0][0] for row in pixels(ants.network, photos)]
    assert_probabilities_close(found, expected)
    assert np.abs(found[0] - found[1]).max() > 0.01  # the photos are told apart


def test_package_says_what_it_is(ants: Package) -> None:
    import coremltools as ct

    run = opened(ants.path)
    metadata = prepare(ants.network, ExportSpec(), nchw_float_input=True).metadata
    assert run.metadata == metadata
    if sys.platform != "darwin":
        assert run.runtime == f"Core ML's program, interpreted (coremltools {ct.__version__})"
    description = run.program.description
    assert run.program.metadata.items() >= metadata.to_strings().items()
    metadata = description.metadata
    assert "mobilevit_xxs: classification, 5 classes" in metadata.shortDescription
    assert metadata.license == metadata.to_strings()["licence"] and not metadata.author
    assert metadata.versionString == metadata.to_strings()["mobilevit_version"]
    assert "`preprocessing`" in description.input[0].shortDescription
    assert "`classes`" in description.output[0].shortDescription
    assert json.loads(run.program.metadata["classes"])[0] == "ant 0"
    # For whoever may read any new file, and without the folders of this machine.
    assert {file.stat().st_mode & 0o444 for file in ants.path.rglob("*")} == {0o444}
    everything = b"".join(file.read_bytes() for file in ants.path.rglob("*") if file.is_file())
    assert str(Path(mobilevit.__file__).parent).encode() not in everything


def test_graph_is_plain(ants: Package) -> None:
    program = opened(ants.path).program
    assert program.rank == 4
    assert not program.operations.keys() & {"cast", "gather", "resize", "batch_norm", "tile"}
    assert program.operations.keys() >= {"conv", "linear", "layer_norm", "silu"}


def test_images_of_another_size_are_refused(ants: Package) -> None:
    message = r"takes image: RGB image \[64, 64\], not uint8 \[1, 64, 60, 3\]"
    with pytest.raises(ExportError, match=message):
        opened(ants.path)(np.zeros((1, 64, 60, 3), np.uint8))


def test_rows_of_a_batch_keep_their_order_in_half_precision(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("mobilevitv2_050", **ODD)
    path, _, written = package(tmp_path, model, dynamic="batch", precision="fp16")
    assert written.inputs == ("image: float32 [1..256, 3, 64, 64]",)
    assert written.outputs == ("probabilities: float32 [batch, 5]",)
    # The input's conversion is of float16 too; that of the logits, and softmax, are not.
    assert written.types == {"float16": written.operations - 2, "float32": 2}
    weights = sum(values.numel() for values in fuse(model).parameters())
    assert size(path) < 2 * weights + 5e5
    run, images = opened(path), pixels(model, photos)
    tensors = torch.stack([preprocess(photo, model.config.preprocessing) for photo in photos])
    with torch.inference_mode():
        expected = fuse(model)(tensors).softmax(-1).numpy()
    assert np.abs(expected[0] - expected[2]).max() > 0.1  # another order would show
    for count in (3, 1):
        (found,) = run(images[:count])
        assert_probabilities_close(found, expected[:count], tolerance=1e-2)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_any_size(network: Any, name: str, tmp_path: Path) -> None:
    model = network(name)
    path, _, written = package(tmp_path, model, dynamic="size", raw=True)
    assert written.inputs == ("input: float32 [1, 3, 32..1024, 32..1024]",)
    assert written.types.keys() == {"float32", "int32"}  # sizes stay whole numbers
    run, fused = opened(path), fuse(model)
    for sides in ((256, 256), (224, 224), (192, 320), (50, 71)):
        x = torch.rand(1, 3, *sides)
        with torch.inference_mode():
            expected = fused(x).numpy()
        assert_close(run(x.numpy())[0], expected)
    with pytest.raises(ExportError, match=r"not float32 \[1, 3, 31, 64\]"):
        run(np.zeros((1, 3, 31, 64), np.float32))


def test_boxes_are_those_of_pytorch(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("ssdlite_mobilevit_xxs", **ODD)
    path, _, written = package(tmp_path, model, precision="fp16")
    assert written.outputs == (
        "boxes: float32 [1, 200, 4]",
        "scores: float32 [1, 200]",
        "labels: int32 [1, 200]",
    )
    assert written.types["float16"] > 250 and written.types["float32"] > 100
    assert size(path) < 3e6  # no matrix of all pairs of boxes is in it
    run = opened(path)
    image = pixels(model, photos[:1])
    with torch.inference_mode():
        (truth,) = detect(
            fuse(model), preprocess(photos[0], model.config.preprocessing)[None], [(1, 1)]
        )
    boxes, scores, labels = run(image)
    assert (labels[0] >= 0).sum() > 10
    np.testing.assert_allclose(scores[0, 0], truth.scores[0], rtol=0, atol=1e-2)
    np.testing.assert_allclose(boxes[0, 0], truth.boxes[0], rtol=0, atol=1e-2)


def test_mask_is_that_of_pytorch(network: Any, tmp_path: Path, photos: list[Image.Image]) -> None:
    model = network("deeplabv3_mobilevit_xxs")
    path, _, written = package(tmp_path, model)
    assert written.outputs == ("mask: int32 [1, 64, 64]",)
    images = pixels(model, photos[:1])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = fuse(model)(tensors).argmax(1).numpy()
    (found,) = opened(path)(images)
    assert (found == expected).mean() > 0.999 and len(np.unique(found)) > 1


KEPT = "network.backbone.stages.2.1.layers.0.attention.qkv"


def test_palettes_leave_layers_in_float(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("mobilevit_xxs")
    quantize = Quantization(mode="palette4", float_layers=frozenset({KEPT}))
    path, _, written = package(tmp_path, model, precision="fp16", quantize=quantize)
    # Of all 54 that are large enough, one stays float and about a dozen get finer palettes.
    coarse, fine = (written.types[f"weights palette of {count}"] for count in (16, 256))
    assert coarse + fine == 53 and 10 <= fine <= 15
    run = opened(path)
    assert run.metadata.quantize == "palette4"
    assert size(path) < 0.8e6
    (found,) = run(pixels(model, photos[:1]))
    assert found.sum() == pytest.approx(1, abs=1e-3)


def test_eight_bits_of_weights_and_activations(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("mobilevit_xxs")
    quantize = Quantization(mode="int8", images=tuple(photos), float_layers=frozenset({KEPT}))
    path, _, written = package(tmp_path, model, quantize=quantize)
    # All layers but one take rounded values and have rounded weights.
    assert written.types["int8"] == written.types["weights int8"] == 71
    verification = verify(opened(path), model, photos, name=path)
    assert verification.agreement == 1


def test_command(network: Any, tmp_path: Path) -> None:
    folder = mobilevit.save(network("mobilevit_xxs"), tmp_path / "ants")
    out = tmp_path / "new" / "ants.mlpackage"
    exported = export(str(folder), ExportOptions(out=str(out), quantize="int8-weights"))
    assert exported.exit_code == 0 and exported.size == size(out)
    text = str(exported)
    assert "image: RGB image [64, 64]" in text and "54 weights int8" in text
    assert [path.name for path in out.parent.iterdir()] == ["ants.mlpackage"]


def test_a_wrong_package_is_not_written(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: Any, preprocessing: Any) -> torch.Tensor:
        return fold_normalization(network, replace(preprocessing, channel_order="rgb"))

    monkeypatch.setattr(wrap, "fold_normalization", wrong)
    with pytest.raises(DisagreementError, match=r"ants\.mlpackage does not agree with PyTorch"):
        export(network("mobilevit_xxs", **ODD), ExportOptions(out=str(tmp_path / "ants.mlpackage")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"quantize": Quantization(mode="int4")}, "cannot be quantised as 'int4'; int8, "),
        (
            {"quantize": Quantization(mode="palette6", float_layers=frozenset({"network.tail"}))},
            r"network\.tail to keep",
        ),
    ],
)
def test_refusals_help(network: Any, wanted: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        package(tmp_path, network("mobilevit_xxs"), **wanted)
    assert list(tmp_path.iterdir()) == []


def test_damaged_packages_are_refused(ants: Package, tmp_path: Path) -> None:
    path = tmp_path / "ants.mlpackage"

    def damaged(name: str, content: bytes | None) -> None:
        shutil.copytree(ants.path, path, dirs_exist_ok=True)
        (file,) = path.rglob(name)
        file.write_bytes(content) if content is not None else file.unlink()
        with pytest.raises(ExportError, match=r"ants\.mlpackage"):
            open_exported(path)
        shutil.rmtree(path)

    whole_model = next(ants.path.rglob("model.mlmodel")).read_bytes()
    damaged("Manifest.json", None)
    damaged("model.mlmodel", None)
    damaged("model.mlmodel", b"not a protobuf")
    damaged("model.mlmodel", whole_model[: len(whole_model) // 2])
    damaged("weight.bin", None)
    damaged("weight.bin", next(ants.path.rglob("weight.bin")).read_bytes()[:5000])
    path.write_bytes(b"a file")
    with pytest.raises(ExportError, match=r"ants\.mlpackage is no Core ML package"):
        open_exported(path)


def test_packages_of_others_are_refused(ants: Package, tmp_path: Path) -> None:
    import coremltools as ct

    model = ct.models.MLModel(str(ants.path), skip_model_load=True)
    model.user_defined_metadata.clear()
    model.save(str(tmp_path / "theirs.mlpackage"))
    with pytest.raises(ExportError, match="does not say how it is to be run"):
        open_exported(tmp_path / "theirs.mlpackage")


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML itself runs on a Mac alone")
def test_core_ml_says_what_the_interpreter_says(ants: Package, photos: list[Image.Image]) -> None:
    run = opened(ants.path)
    assert run.runtime.startswith("Core ML of macOS")
    for row in pixels(ants.network, photos):
        (found,), (expected,) = run.predict(row[None]), run.interpret(row[None])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
