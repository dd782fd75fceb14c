"""Files of 8 bits, and how few layers of them must stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mobilevit.commands.export import export
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.quantize import (
    EqualizedConv,
    Trial,
    equalize_channels,
    fewest_float_layers,
    quantizable_layers,
    rank_layers,
)
from mobilevit.exports.spec import ExportError, ExportSpec, Quantization
from mobilevit.exports.verify import verify
from mobilevit.exports.wrap import PreparedModel
from mobilevit.models.layers import InvertedResidual
from tests.numerics import assert_close

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)

ONNX = BACKENDS["onnx"]
KEPT = "network.backbone.stages.2.1.layers.0.attention.qkv"
LOUD = {f"network.backbone.stages.1.0.{name}.conv" for name in ("expand", "depthwise")}
"""Layers between which `loud` makes one channel a thousand times as large as the others."""


@pytest.fixture(scope="module")
def loud(network: Any) -> Any:
    """A network with a channel that reaches far, as those of trained networks do."""
    model = network("mobilevit_xxs")
    block = model.backbone.stages[1][0]
    assert isinstance(block, InvertedResidual)
    with torch.no_grad():
        block.expand.norm.weight[0] *= 1000
        block.depthwise.conv.weight[0] /= 1000
    return model


@pytest.fixture(scope="module")
def asked(photos: list[Image.Image]) -> Quantization:
    return Quantization(mode="int8", images=tuple(photos))


@pytest.fixture(scope="module")
def prepared(loud: Any, asked: Quantization) -> PreparedModel:
    return BACKENDS["openvino"].prepare(loud, ExportSpec(quantize=asked))


def said(prepared: PreparedModel) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([prepared.module(photo) for photo in prepared.calibration()])


def test_channels_are_evened_out(prepared: PreparedModel) -> None:
    before = said(prepared)
    evened = equalize_channels(prepared)
    blocks = [one for one in evened.module.modules() if isinstance(one, EqualizedConv)]
    assert len(blocks) == 7 and max(float(one.scale.max()) for one in blocks) > 100
    assert_close(said(evened), before)
    assert quantizable_layers(evened.module).keys() == quantizable_layers(prepared.module).keys()
    assert equalize_channels(evened) is evened
    assert torch.equal(said(prepared), before)  # the original is left as it was


def test_the_layer_that_suffers_is_found(prepared: PreparedModel) -> None:
    before = said(prepared)
    ranked = rank_layers(prepared)
    assert sorted(ranked) == sorted(quantizable_layers(prepared.module)) and len(ranked) == 72
    assert set(ranked[:2]) == LOUD
    assert set(rank_layers(equalize_channels(prepared))[:2]) != LOUD
    assert torch.equal(said(prepared), before)


def test_int8_onnx(
    loud: Any,
    prepared: PreparedModel,
    asked: Quantization,
    tmp_path: Path,
    photos: list[Image.Image],
) -> None:
    import onnx

    request = ExportSpec(
        quantize=Quantization(mode="int8", photos=asked.photos, float_layers=frozenset({KEPT}))
    )
    path = tmp_path / "ants.onnx"
    written = ONNX.write(loud, request, path)
    graph = onnx.load(path).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}

    def data(node: Any) -> list[Any]:
        return [made[name] for name in node.input if name in made]

    layers = {node.name: node for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert len(layers) == 72
    for name, node in layers.items():
        kinds = {one.op_type for one in data(node)}
        assert kinds == ({"DequantizeLinear"} if name != KEPT else {"LayerNormalization"}), name
        if name != KEPT:
            assert weights[data(node)[1].input[0]] == onnx.TensorProto.INT8
    for node in graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "MatMul", "ReduceMean"):
            assert not any(one.op_type == "DequantizeLinear" for one in data(node)), node.name
    assert written.types["int8"] > 71 and written.types["float32"] > 50
    run = open_exported(path)
    assert run.metadata.quantize == "int8" and run.metadata.config.classes == loud.config.classes
    off = verify(run, loud, photos, name="ants", least=None).difference
    # Without channels evened out.
    ONNX.module().write(prepared, tmp_path / "plain.onnx")
    plain = verify(open_exported(tmp_path / "plain.onnx"), loud, photos, name="plain", least=None)
    assert off < 0.7 * plain.difference


def test_int8_weights_compute_as_float(
    network: Any, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network("mobilevitv2_050")
    sizes = []
    for quantize in (None, Quantization(mode="int8-weights")):
        written = ONNX.write(model, ExportSpec(quantize=quantize), tmp_path / "ants.onnx")
        sizes.append((tmp_path / "ants.onnx").stat().st_size)
    assert sizes[1] < 0.35 * sizes[0]
    assert written.types["float32 with int8 weights"] == 65
    run = open_exported(tmp_path / "ants.onnx")
    assert verify(run, model, photos, name="ants").difference < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16", "quantize": "int8"}, "leave precision fp16 out"),
        ({"quantize": "int3"}, "cannot be quantised as 'int3'"),
    ],
)
def test_refusals_help(network: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export(network("mobilevit_xxs"), ExportOptions(out=str(tmp_path / "ants.onnx"), **options))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_layer_can_not_be_kept(loud: Any, asked: Quantization, tmp_path: Path) -> None:
    odd = Quantization(mode="int8", photos=asked.photos, float_layers=frozenset({"network.tail"}))
    with pytest.raises(ExportError, match=r"no layers network\.tail to keep.* network\.head"):
        ONNX.write(loud, ExportSpec(quantize=odd), tmp_path / "ants.onnx")


def needing(count: int, tried: list[int]) -> Callable[[frozenset[str]], float]:
    """Of files that lose nothing once the `count` worst layers are in float."""

    def drop(kept: frozenset[str]) -> float:
        tried.append(len(kept))
        worst = {f"layer {index}" for index in range(count)}
        return 0.0 if worst <= kept else 0.05

    return drop


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 20, 59, 60])
def test_least_float(count: int) -> None:
    ranked, tried = [f"layer {index}" for index in range(60)], []
    kept, trials = fewest_float_layers(ranked, needing(count, tried), max_drop=0.01)
    assert kept == frozenset(ranked[:count])
    assert [trial.float_layers for trial in trials] == tried and tried[0] == 0
    assert len(tried) == len(set(tried)) <= 2 + 2 * math.ceil(math.log2(60))
    assert trials[-1].drop <= 0.01 or any(
        t.float_layers == count and t.drop <= 0.01 for t in trials
    )
    assert str(Trial(3, 0.0125)) == "3 in float: drop 0.0125"


def test_where_float_is_not_enough() -> None:
    with pytest.raises(ExportError, match=r"even with all 3 layers in float the file loses 0\.05"):
        fewest_float_layers(["a", "b", "c"], lambda _kept: 0.05, max_drop=0.01)
