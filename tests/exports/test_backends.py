"""What is particular to one format."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mobilevit.exports.backends.coreml.backend import CoremlRunner
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.quantize import quantizable_layers
from mobilevit.exports.rewrite import inference_graph
from mobilevit.exports.spec import ExportError, ExportSpec
from mobilevit.exports.verify import verify
from mobilevit.models.layers import SeparableSelfAttention
from tests.exports.conftest import ANTS, FLOAT_LAYER, distinctive
from tests.numerics import assert_close, assert_probabilities_close

Exported = Callable[..., Any]


def test_onnx_is_one_file_of_opset_18(exported: Exported) -> None:
    import onnx

    made = exported("onnx")
    assert made.summary.inputs == ("image: uint8 [1, 64, 64, 3]",)
    assert made.summary.outputs == ("probabilities: float32 [1, 5]",)
    file = onnx.load(made.path)
    assert {one.domain: one.version for one in file.opset_import}[""] == 18
    assert file.ir_version == 8
    operations = {node.op_type for node in file.graph.node}
    assert not operations & {"Resize", "BatchNormalization", "Gather", "If"}
    metadata = made.open().session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(ANTS)
    assert json.loads(metadata["preprocessing"])["crop"] == 64
    assert metadata["source"] == "a test" and "a test" in metadata["licence"]
    assert exported("onnx", variant="size").summary.inputs == (
        "tensor: float32 [1, 3, height, width]",
    )
    operations = {node.op_type for node in onnx.load(exported("onnx", "detection").path).graph.node}
    assert "NonMaxSuppression" in operations


def test_onnx_int8_weights_compute_in_float(exported: Exported, images: list[Image.Image]) -> None:
    made = exported("onnx", variant="int8-weights")
    assert made.summary.types["float32 with int8 weights"] > 20
    assert len(made.bytes()) < 0.45 * len(exported("onnx").bytes())
    assert verify(made.open(), made.network, images, name="ants").difference < 0.1


@pytest.fixture
def package(exported: Exported) -> CoremlRunner:
    runner = exported("coreml").open()
    assert isinstance(runner, CoremlRunner)
    return runner


def test_coreml_package_is_described(exported: Exported, package: CoremlRunner) -> None:
    import coremltools as ct

    made, metadata = exported("coreml"), package.metadata.to_strings()
    assert made.summary.inputs == ("image: RGB image [64, 64]",)
    assert made.summary.types == {"float32": made.summary.operations}
    if sys.platform != "darwin":
        assert package.runtime == f"Core ML's program, interpreted (coremltools {ct.__version__})"
    description = package.program.description
    assert package.program.metadata.items() >= metadata.items()
    assert "mobilevit_xxs: classification, 5 classes" in description.metadata.shortDescription
    assert description.metadata.license == metadata["licence"] and not description.metadata.author
    assert "`preprocessing`" in description.input[0].shortDescription
    assert "`classes`" in description.output[0].shortDescription
    # Readable by all users, as any new file.
    assert {file.stat().st_mode & 0o444 for file in made.path.rglob("*")} == {0o444}


def test_coreml_graph_is_simple(package: CoremlRunner) -> None:
    steps = package.program.steps
    assert max(output.rank for step in steps for output in step.outputs) == 4
    operations = {step.op_type for step in steps}
    assert not operations & {"cast", "gather", "resize", "batch_norm", "tile"}
    assert operations >= {"conv", "linear", "layer_norm", "silu"}


def test_coreml_postprocesses_in_float32(exported: Exported) -> None:
    summary = exported("coreml", variant="fp16").summary
    # The conversion of the input is float16 too; those of the logits, and softmax, are not.
    assert summary.types == {"float16": summary.operations - 2, "float32": 2}
    summary = exported("coreml", "detection").summary
    assert summary.outputs[2] == "labels: int32 [1, 200]"
    assert len(exported("coreml", "detection").bytes()) < 5.5e6  # no matrix of all pairs of boxes


def test_coreml_attention_does_not_overflow_in_half_precision(
    images: list[Image.Image], tmp_path: Path
) -> None:
    """Keys and values of some trained networks are around 1e3, and their products 1e6."""
    model = distinctive("mobilevitv2_050", shallow=True)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SeparableSelfAttention):
                module.qkv.weight[1:] *= 500
                module.out.weight *= 1e-3
    summary = BACKENDS["coreml"].write(
        model, ExportSpec(precision="fp16"), tmp_path / "loud.mlpackage"
    )
    verify(open_exported(summary.path), model, images, name="loud")
    assert summary.types["float16"] > 2 * summary.types["float32"]


def test_coreml_palettes(exported: Exported) -> None:
    made = exported("coreml", variant="palette4")
    coarse, fine = (made.summary.types[f"weights palette of {count}"] for count in (16, 256))
    assert coarse > fine > 5  # finer ones where channels differ widely
    (found,) = made.open()(np.zeros((1, 64, 64, 3), np.uint8))
    assert found.sum() == pytest.approx(1, abs=1e-3)


def test_coreml_packages_of_others_are_refused(exported: Exported, tmp_path: Path) -> None:
    import coremltools as ct

    model = ct.models.MLModel(str(exported("coreml").path), skip_model_load=True)
    model.user_defined_metadata.clear()
    model.save(str(tmp_path / "theirs.mlpackage"))
    with pytest.raises(ExportError, match="was not written by `mobilevit export`"):
        open_exported(tmp_path / "theirs.mlpackage")


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on a Mac only")
def test_core_ml_agrees_with_the_interpreter(
    exported: Exported, package: CoremlRunner, images: list[Image.Image]
) -> None:
    assert package.runtime.startswith("Core ML of macOS")
    for row in exported("coreml").pixels(images):
        (found,), (expected,) = package.predict(row[None]), package.interpret(row[None])
        assert_probabilities_close(found, expected)


def test_litert_runs_in_xnnpack(exported: Exported) -> None:
    nodes = exported("litert").summary.operations
    placement = f"XNNPACK runs {nodes} of {nodes} operations, in 1 part"
    assert exported("litert").summary.placement == placement
    placement = exported("litert", "segmentation").summary.placement
    assert placement.endswith("in 1 part; left: ARG_MAX, CAST")  # what turns logits into a mask
    for variant in ("int8", "int8-weights"):
        summary = exported("litert", variant=variant).summary
        assert "of " in summary.placement and "left" not in summary.placement
    assert "int8" not in summary.types  # weights only: it computes in float


def test_litert_metadata_is_readable_on_android(exported: Exported) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = exported("litert").path
    with zipfile.ZipFile(path) as files:  # as Android's metadata library does
        assert tuple(files.read("labels.txt").decode().splitlines()) == ANTS
        assert json.loads(files.read("mobilevit.json"))["model"] == "mobilevit_xxs"
    interpreter = Interpreter(model_path=str(path))
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["image"], "outputs": ["probabilities"]}
    assert interpreter.get_input_details()[0]["name"] == "image"


def test_litert_files_are_reproducible(exported: Exported, tmp_path: Path) -> None:
    made = exported("litert")
    again = BACKENDS["litert"].write(made.network, made.spec, tmp_path / "again.tflite")
    assert again.path.read_bytes() == made.bytes()


def test_litert_is_not_quantized_in_half_precision(exported: Exported) -> None:
    spec = ExportSpec(precision="fp16", quantize="int8-weights")
    with pytest.raises(ExportError, match="cannot combine quantize with precision fp16"):
        BACKENDS["litert"].write(exported("litert").network, spec, Path("never.tflite"))


def test_executorch_delegates_to_xnnpack(exported: Exported) -> None:
    summary = exported("executorch").summary
    assert "% of the operations, in 1 part" in summary.placement
    assert summary.placement.endswith("kernels take 1 _to_dim_order_copy, 1 permute_copy")
    assert summary.types == {"float32": summary.operations - 1, "uint8": 1}
    for variant in ("int8", "batch"):
        assert "in 1 part" in exported("executorch", variant=variant).summary.placement
    (line,) = exported("executorch", variant="batch").summary.inputs
    assert line == "image: uint8 [batch <= 8, 64, 64, 3]"
    (line,) = exported("executorch", variant="size").summary.inputs
    assert line == "tensor: float32 [1, 3, height <= 512, width <= 512]"


def test_executorch_metadata_is_readable_on_phones(exported: Exported) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(exported("executorch").path)
    strings = {
        name: program.load_method(name).execute([])[0]
        for name in program.method_names
        if name != "forward"
    }
    assert json.loads(strings["classes"]) == list(ANTS)
    assert json.loads(strings["preprocessing"])["crop"] == 64
    assert json.loads(strings["inputs"]) == ["image"]
    assert json.loads(strings["outputs"]) == ["probabilities"]


def test_executorch_files_on_different_threads_take_turns(
    exported: Exported, images: list[Image.Image]
) -> None:
    made = exported("executorch")
    runs = [made.open(threads) for threads in (1, 2, 1)]
    outputs = [run(made.pixels(images[:1]))[0] for _ in range(2) for run in runs]
    for output in outputs[1:]:
        assert_close(output, outputs[0])


def test_executorch_lowers_to_core_ml(exported: Exported, network: Any, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    exported("executorch")
    from mobilevit.exports.backends.executorch.backend import write_coreml

    model = network("mobilevit_xxs", shallow=True)
    prepared = BACKENDS["coreml"].prepare(model, ExportSpec())
    summary = write_coreml(prepared, tmp_path / "ants.pte")
    assert summary.placement.startswith("Core ML takes 100.0% of the operations")
    if sys.platform != "darwin":
        with pytest.raises(ExportError, match="is for Core ML"):
            open_exported(summary.path)


class Counting(nn.Module):
    """A network that computes in integers only."""

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.int64).amax((2, 3))


def test_executorch_needs_something_to_delegate(exported: Exported, tmp_path: Path) -> None:
    network = exported("executorch").network
    prepared = BACKENDS["executorch"].prepare(network, ExportSpec(raw=True))
    prepared = replace(prepared, module=Counting())
    with pytest.raises(ExportError, match="XNNPACK takes no operation of the network"):
        BACKENDS["executorch"].write_prepared(prepared, tmp_path / "never.pte")
    assert not list(tmp_path.iterdir())


def test_openvino_is_two_files(exported: Exported) -> None:
    made = exported("openvino")
    assert {file.name for file in made.path.iterdir()} == {"model.xml", "model.bin"}
    runtime = made.open().runtime
    assert runtime.startswith("openvino 20") and runtime.count(".") == 2
    assert made.summary.types == {"float32": made.summary.operations}
    types = exported("openvino", variant="fp16").summary.types
    assert types["float16"] > types["float32"]
    layers = quantizable_layers(inference_graph(made.network))
    assert FLOAT_LAYER.removeprefix("network.") in layers
    assert exported("openvino", variant="int8").summary.types["int8"] == len(layers) - 1
