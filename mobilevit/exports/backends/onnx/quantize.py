"""Int8 ONNX graphs: layers and the activations between them, or weights only."""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevit.exports.quantize import EQUALIZED_RANGE
from mobilevit.utils.quantization import quantize_weight

LAYERS = ("Conv", "Gemm", "MatMul")
BETWEEN = ("Add", "Mul", "Relu", "Sigmoid")
"""Quantized between quantized layers: SiLU and shortcuts."""
MOVING = ("Reshape", "Transpose")
"""Operations that compute nothing."""
SIGMOID_RANGE = (-8.0, 8.0)
"""Outside it, an int8 sigmoid does not change."""


def quantize_int8(
    model: Any, layers: Collection[str], images: Sequence[Mapping[str, np.ndarray]]
) -> Any:
    """Quantize layers and the nodes between them, by ranges measured on calibration images.

    Weights have a symmetric range per output channel. Inputs of layers are uint8: ONNX Runtime
    multiplies that by int8 in one instruction on x86, but int8 by int8 in several. The outputs of
    linear layers stay in float32 for norms and attention.

    Returns:
        Another `onnx.ModelProto`, with pairs of QuantizeLinear and DequantizeLinear.
    """
    graph = model.graph
    nodes = _between(graph, layers)
    if not nodes:
        return model
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.left, None)

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    # Without this mark, onnxruntime warns that the graph is not preprocessed; ours need not be.
    onnx.helper.set_model_props(copied, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            copied,
            str(path),
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *BETWEEN],
            nodes_to_quantize=sorted(nodes),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": {
                    name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
                    for name, (low, high) in _known_ranges(graph, nodes).items()
                },
            },
        )
        quantized = onnx.load(path)
    for field in ("opset_import", "metadata_props"):
        quantized.ClearField(field)
        getattr(quantized, field).extend(getattr(model, field))
    quantized.ir_version, quantized.producer_name = model.ir_version, model.producer_name
    quantized.ClearField("producer_version")
    return quantized


def _between(graph: Any, layers: Collection[str]) -> set[str]:
    """Names of the layers, and of the nodes between them that can be quantized.

    All inputs and all users of such a node are quantized nodes.
    """
    producers = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    results = {value.name for value in graph.output}

    def before(node: Any) -> Iterator[str | None]:
        """Names of the nodes whose results a node takes; None for an input of the graph."""
        for name in node.input[:1] if node.op_type in MOVING else node.input:
            if name in constants:
                continue
            source = producers.get(name)
            if source is not None and source.op_type in MOVING:
                yield from before(source)
            else:
                yield None if source is None else source.name

    def after(node: Any) -> Iterator[str | None]:
        """Names of the nodes that take a node's results; None for an output of the graph."""
        for name in node.output:
            if name in results:
                yield None
            for target in users.get(name, []):
                if target.op_type in MOVING:
                    yield from after(target)
                else:
                    yield target.name

    quantized = {node.name for node in graph.node if node.name in layers}
    between = [node for node in graph.node if node.op_type in BETWEEN]
    inside = quantized | {node.name for node in between}
    while True:
        leaving = {
            node.name
            for node in between
            if node.name in inside
            and not all(name in inside for name in (*before(node), *after(node)))
        }
        if not leaving:
            return inside
        inside -= leaving


def _known_ranges(graph: Any, nodes: Collection[str]) -> dict[str, tuple[float, float]]:
    """Ranges that are not measured: around the sigmoids of equalized channels."""
    producers = {output: node for node in graph.node for output in node.output}
    found: dict[str, tuple[float, float]] = {}
    for node in graph.node:
        if node.op_type == "Sigmoid" and node.name in nodes:
            (tensor,) = node.input
            if producers[tensor].op_type == "Mul":  # by the scales of equalized channels
                found |= {tensor: SIGMOID_RANGE, producers[tensor].input[0]: EQUALIZED_RANGE}
    return found


def quantize_weights(model: Any, layers: Collection[str]) -> Any:
    """Store the weights of layers in int8, with a symmetric range per output channel.

    Cast and Mul restore them to float32. Runtimes fold these when they load the file, as other
    constants; a DequantizeLinear would run for each input.
    """
    onnx: Any = importlib.import_module("onnx")
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.name in layers:
            name = node.input[1]
            tensor = weights[name]
            weight = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            transposed = {one.name: one.i for one in node.attribute}.get("transB", 0)
            axis = 0 if node.op_type == "Conv" or transposed else weight.ndim - 1
            values, scale = quantize_weight(weight, axis)
            shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.numpy(), name))
            scale_tensor = onnx.numpy_helper.from_array(scale.view(shape).numpy(), f"{name}.scale")
            graph.initializer.append(scale_tensor)
            helper = onnx.helper
            nodes += [
                helper.make_node("Cast", [name], [f"{name}.cast"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [f"{name}.float"]),
            ]
            node.input[1] = f"{name}.float"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def count_types(model: Any) -> dict[str, int]:
    """Count the nodes of a quantized graph by type, without conversions."""
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    types: Counter[str] = Counter()
    for node in graph.node:
        sources = [producers[name] for name in node.input if name in producers]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type in ("Cast", "Mul") and _constant(node, producers, constants):
            continue
        if sources and all(source.op_type == "DequantizeLinear" for source in sources):
            types["int8"] += 1
        elif node.op_type in LAYERS and _constant(
            producers.get(node.input[1]), producers, constants
        ):
            types["float32 with int8 weights"] += 1
        else:
            types["float32"] += 1
    return dict(types)


def _constant(node: Any, producers: Mapping[str, Any], constants: Collection[str]) -> bool:
    return node is not None and all(
        name in constants or _constant(producers.get(name), producers, constants)
        for name in node.input
    )
