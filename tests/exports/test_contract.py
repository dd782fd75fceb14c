"""What holds for the files of every format: each (format, task) is exported once."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.checkpoints.folder import digest
from mobilevit.data.preprocessing import preprocess
from mobilevit.exports import wrap
from mobilevit.exports.backends.registry import BACKENDS, backend_of, open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import ExportError, ExportSpec, FileMetadata, MissingExtraError
from mobilevit.exports.verify import DisagreementError, verify
from mobilevit.exports.wrap import fold_normalization
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build
from mobilevit.tasks import TASKS, get_task
from tests.exports.conftest import ANTS, FLOAT_LAYER, PACKAGES, UNUSUAL
from tests.numerics import assert_close, assert_probabilities_close

FORMATS = tuple(PACKAGES)
Exported = Callable[..., Any]

every_format = pytest.mark.parametrize("backend", FORMATS)
every_task = pytest.mark.parametrize("task", TASKS)


def test_a_suffix_selects_a_format() -> None:
    assert {name: backend_of(f"x{one.suffix}") for name, one in BACKENDS.items()} == {
        name: one if one.by_suffix else None for name, one in BACKENDS.items()
    }
    assert set(BACKENDS) == {*FORMATS, "web"}


@every_format
@every_task
def test_files_agree_with_pytorch(
    exported: Exported, images: list[Image.Image], backend: str, task: str
) -> None:
    made = exported(backend, task)
    run = made.open()
    verification = verify(run, made.network, images, name=made.path)
    assert verification.images == 3 and verification.tolerance == 1e-3
    # A new network's pixels are nearly as probable of one class as of another.
    assert verification.agreement > 0.999
    outputs = [run(row[None]) for row in made.pixels(images)]
    assert np.abs(outputs[0][0].astype(float) - outputs[1][0]).max() > 0.01  # images differ
    names = [line.partition(":")[0] for line in made.summary.outputs]
    assert tuple(names) == get_task(task).export.outputs
    (first,) = made.summary.inputs
    assert first.startswith("image: ") and made.path.is_dir() == BACKENDS[backend].is_folder


@every_format
@every_task
def test_files_describe_themselves(exported: Exported, backend: str, task: str) -> None:
    made = exported(backend, task)
    metadata = made.open().metadata
    assert metadata.config.classes == ANTS
    assert metadata.weights == digest(made.network.state_dict())
    assert (metadata.raw, metadata.dynamic, metadata.precision) == (False, None, "fp32")
    content = made.bytes()
    for place in (Path(mobilevit.__file__).parent, Path(sys.prefix)):
        assert str(place).encode() not in content


def left_to_do(metadata: FileMetadata) -> dict[str, Any]:
    """The preprocessing that a file's metadata state, in all places alike."""
    strings = metadata.to_strings()
    steps: dict[str, Any] = json.loads(strings["preprocessing"])
    assert json.loads(strings["config"])["preprocessing"] == steps
    return steps


@every_format
def test_metadata_state_only_what_is_left_to_do(
    exported: Exported, images: list[Image.Image], backend: str
) -> None:
    """Channel order, mean and standard deviation are inside the file, unless it is raw."""
    made = exported(backend)
    run, own = made.open(), made.network.config.preprocessing
    assert own.channel_order == "bgr" and any(own.mean)
    assert left_to_do(run.metadata) == {
        "resize_mode": own.resize_mode,
        "resize": own.resize,
        "crop": own.crop,
        "interpolation": own.interpolation,
    }
    assert run.metadata.values == "v in 0 to 255: red, green, blue"
    assert b"channel_order" not in made.bytes()
    x = torch.stack([preprocess(image, own) for image in images])
    with torch.inference_mode():
        expected = fuse(made.network)(x).softmax(-1).numpy()
    found = np.concatenate([run(row[None])[0] for row in made.pixels(images)])
    assert_probabilities_close(found, expected)


@every_format
def test_metadata_of_raw_files_state_all(network: Any, backend: str) -> None:
    model = network("mobilevit_xxs", shallow=True, **UNUSUAL)
    metadata = BACKENDS[backend].prepare(model, ExportSpec(raw=True)).metadata
    steps = left_to_do(metadata)
    assert steps["channel_order"] == "bgr" and steps["mean"] == list(UNUSUAL["mean"])
    assert metadata.values.endswith("blue, green, red")
    again = FileMetadata.from_strings(metadata.to_strings(), file="ants")
    assert again.config.preprocessing == model.config.preprocessing


@every_format
@every_task
def test_predict_gives_the_networks_predictions(
    exported: Exported, images: list[Image.Image], backend: str, task: str
) -> None:
    made = exported(backend, task)
    stretch = {"resize_mode": "stretch"} if task == "segmentation" else {}
    model = made.network
    with_file = mobilevit.predict(str(made.path), *images)
    before = model.config
    model.config = replace(before, preprocessing=replace(before.preprocessing, **stretch))
    try:
        with_network = mobilevit.predict(model, *images)
    finally:
        model.config = before
    for found, expected in zip(with_file, with_network, strict=True):
        if task == "classification":
            assert_probabilities_close(found.probabilities, expected.probabilities)
        elif task == "segmentation":
            assert (found.mask == expected.mask).mean() > 0.99
        else:
            assert len(found.boxes) == len(expected.boxes) > 0
            for one, other in zip(found.boxes, expected.boxes, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-3)


@every_format
@pytest.mark.parametrize(
    "batch",
    [np.zeros((2, 64, 64, 3), np.uint8), np.zeros((1, 64, 65, 3), np.uint8)],
    ids=["two images", "another size"],
)
def test_other_shapes_are_refused(exported: Exported, backend: str, batch: np.ndarray) -> None:
    run = exported(backend).open()
    with pytest.raises(ExportError, match=re.escape(str(list(batch.shape)))):
        run(batch)


@every_format
def test_opening_and_running_prints_nothing(
    exported: Exported,
    images: list[Image.Image],
    capfd: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    made = exported(backend)
    capfd.readouterr()
    made.open()(made.pixels(images[:1]))
    assert capfd.readouterr().err == ""


@every_format
@pytest.mark.parametrize("content", [b"", b"PNG" * 400])
def test_other_files_are_refused(
    exported: Exported, tmp_path: Path, backend: str, content: bytes
) -> None:
    exported(backend)  # or the format's packages are missing
    path = tmp_path / f"ants{BACKENDS[backend].suffix}"
    if BACKENDS[backend].is_folder:
        path.mkdir()
        (path / "model.xml").write_bytes(content)
    else:
        path.write_bytes(content)
    with pytest.raises(ExportError, match="ants"):
        open_exported(path)


@every_format
def test_damaged_files_are_refused(exported: Exported, tmp_path: Path, backend: str) -> None:
    made = exported(backend)
    path = tmp_path / f"ants{made.path.suffix}"
    if made.path.is_dir():
        shutil.copytree(made.path, path)
        largest = max(path.rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    else:
        largest = path
    content = made.path.read_bytes() if made.path.is_file() else largest.read_bytes()
    if backend == "litert":  # the archive at its end stays intact
        largest.write_bytes(b"\0" * 64 + content[64:])
    else:
        largest.write_bytes(content[: len(content) // 4])
    with pytest.raises(ExportError, match=r"ants\."):
        open_exported(path)


@every_format
def test_batches_keep_their_order(
    exported: Exported, images: list[Image.Image], backend: str
) -> None:
    if "batch" not in BACKENDS[backend].dynamic:
        with pytest.raises(ExportError, match="cannot have dynamic batch: export one file for"):
            exported(backend, variant="batch")
        return
    made = exported(backend, variant="batch")
    assert "batch" in made.summary.inputs[0] or "1..256" in made.summary.inputs[0]
    preprocessing = made.network.config.preprocessing
    tensors = torch.stack([preprocess(image, preprocessing) for image in images])
    with torch.inference_mode():
        expected = fuse(made.network)(tensors).softmax(-1).numpy()
    assert np.abs(expected[0] - expected[2]).max() > 0.01  # another order would show
    run, batch = made.open(), made.pixels(images)
    for count in (3, 1):
        assert_probabilities_close(run(batch[:count])[0], expected[:count])


@every_format
def test_any_size(exported: Exported, backend: str) -> None:
    if "size" not in BACKENDS[backend].dynamic:
        with pytest.raises(ExportError, match="cannot have dynamic size: export one file for"):
            exported(backend, variant="size")
        return
    made = exported(backend, variant="size")
    run, fused = made.open(), fuse(made.network)
    assert run.metadata.raw and run.metadata.dynamic == "size"
    for size in ((256, 256), (224, 224), (192, 320), (50, 71)):
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = fused(x).numpy()
        assert_close(run(x.numpy())[0], expected, tolerance=1e-4)


@every_format
def test_half_precision(exported: Exported, images: list[Image.Image], backend: str) -> None:
    whole, half = (len(exported(backend, variant=one).bytes()) for one in ("fp32", "fp16"))
    # A few parts stay in float32. ExecuTorch saves less: 2.8 of 3.9 MB for XXS.
    assert half < (0.9 if backend == "executorch" else 0.7) * whole
    made = exported(backend, variant="fp16")
    verification = verify(made.open(), made.network, images, name="ants")
    assert verification.tolerance == 1e-2 and verification.agreement == 1


@every_format
def test_int8(exported: Exported, images: list[Image.Image], backend: str) -> None:
    whole = len(exported(backend).bytes())
    made = exported(backend, variant="int8")
    assert len(made.bytes()) < 0.5 * whole
    types = made.summary.types
    assert types["int8"] > 20
    run = made.open()
    assert run.metadata.quantize == "int8"
    # A new network's predictions are nearly ties; trained ones are tested on photographs.
    bounds: dict[str, Any] = {"min_agreement": 0.0, "max_mean_difference": 0.5}
    verification = verify(run, made.network, images, name="ants", **bounds)
    assert 0 < verification.mean_difference <= verification.difference
    bounds["max_mean_difference"] = verification.mean_difference / 2
    with pytest.raises(DisagreementError, match=r"mean \S+ \(maximum "):
        verify(run, made.network, images, name="ants", **bounds)


@every_format
def test_what_cannot_be_quantized(network: Any, tmp_path: Path, backend: str) -> None:
    model = network("mobilevit_xxs", shallow=True)
    odd: list[tuple[dict[str, Any], str]] = [
        (
            {"quantize": "int3"},
            f"'int3' is not available for {backend} files: it must be one of int8",
        ),
        ({"quantize": "int8"}, "none were given"),
        (
            {"quantize": "int8", "float_layers": frozenset({"nose"})},
            r"no layers nose; .*network\.head",
        ),
    ]
    for options, message in odd:
        if BACKENDS[backend].cross_layer_equalization or options["quantize"] == "int3":
            with pytest.raises(ExportError, match=message):
                BACKENDS[backend].prepare(model, ExportSpec(**options))


@pytest.mark.parametrize("name", ["ssdlite_mobilevit_xxs", "pspnet_mobilevitv2_050"])
def test_networks_of_one_size_have_no_dynamic_size(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Refused before anything is written, with the options of a file for each size."""
    model = str(mobilevit.save(network(name), tmp_path / "model"))
    out = tmp_path / "new" / "ants.onnx"
    assert main(["export", model, "--out", str(out), "--dynamic", "size"]) == 1
    error = capsys.readouterr().err
    assert "for one image size" in error or "belong to one image size" in error
    assert "--preprocessing.crop 320 --preprocessing.resize 320" in error
    assert not out.parent.exists()
    for backend in BACKENDS.values():
        with pytest.raises(ExportError, match="without dynamic, such as by"):
            backend.prepare(network(name), ExportSpec(dynamic="size", raw=True))


def test_unknown_kinds_of_files_are_refused() -> None:
    with pytest.raises(ValueError, match="dynamic must be batch or size, not 'depth'"):
        ExportOptions(out="ants.onnx", dynamic="depth")  # type: ignore[arg-type]
    spec = ExportSpec(precision="bf16")  # type: ignore[arg-type]
    for backend in BACKENDS.values():
        with pytest.raises(ExportError, match="precision must be fp32 or fp16, not 'bf16'"):
            backend.check(build("mobilevit_xxs"), spec)


@every_task
def test_a_wrong_file_is_not_written(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    pytest.importorskip("onnxscript")

    def wrong(graph: Any, preprocessing: Any) -> torch.Tensor:
        return fold_normalization(graph, replace(preprocessing, channel_order="rgb"))

    monkeypatch.setattr(wrap, "fold_normalization", wrong)
    name = {"detection": "ssdlite_", "segmentation": "deeplabv3_"}.get(task, "") + "mobilevit_xxs"
    model = network(name, shallow=True, channel_order="bgr")
    with pytest.raises(DisagreementError, match=r"ants\.onnx does not agree with PyTorch"):
        mobilevit.export(model, ExportOptions(out=str(tmp_path / "ants.onnx")))
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(
    network: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = exported("onnx").path
    image = tmp_path / "ant.png"
    Image.new("RGB", (64, 64)).save(image)
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    options = ExportOptions(out=str(tmp_path / "ants.onnx"))
    with pytest.raises(MissingExtraError, match=r"pip install 'mobilevit\[onnx\]'"):
        mobilevit.export(network("mobilevit_xxs", shallow=True), options)
    assert main(["predict", str(path), str(image)]) == 1


def test_float_layers_stay_in_float(exported: Exported) -> None:
    import onnx

    graph = onnx.load(exported("onnx", variant="int8").path).graph
    producers = {output: node for node in graph.node for output in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) > 20
    narrow = re.compile(r"network\.backbone\.(stem|stages\.([01]\.|2\.0))")  # of XXS
    for node in layers:
        quantized = node.input[1] in producers  # its weight: constant if it is float
        assert quantized == (node.name != FLOAT_LAYER and not narrow.match(node.name)), node.name
        if quantized:
            sources = [producers[name] for name in node.input]
            assert {one.op_type for one in sources} == {"DequantizeLinear"}
            assert types[sources[1].input[0]] == onnx.TensorProto.INT8
    for node in graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceMean"):
            sources = [producers[name] for name in node.input if name in producers]
            assert not any(one.op_type == "DequantizeLinear" for one in sources), node.name
