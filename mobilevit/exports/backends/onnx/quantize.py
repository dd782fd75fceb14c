"""Int8 ONNX graphs: layers and the activations between them, or weights only."""

import importlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevit.exports.quantize import EQUALIZED_RANGE
from mobilevit.exports.toolchain import require
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
        Another `onnx_ir.Model`, with pairs of QuantizeLinear and DequantizeLinear.
    """
    nodes = {node.name for node in _quantizable(model.graph, layers)}
    if not nodes:
        return model
    onnx: Any = importlib.import_module("onnx")
    ir: Any = importlib.import_module("onnx_ir")
    quantization: Any = require("onnxruntime.quantization", extra="onnx")

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.left, None)

    proto = ir.to_proto(model)
    # Without this mark, onnxruntime warns that the graph is not preprocessed; ours need not be.
    onnx.helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            proto,
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
                    for name, (low, high) in _known_ranges(model.graph, nodes).items()
                },
            },
        )
        # Not by `ir.load`, which leaves weights in a file that is removed here.
        graph = ir.from_proto(onnx.load(path)).graph
    graph.opset_imports.clear()
    graph.opset_imports.update(model.opset_imports)
    return ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        metadata_props=model.metadata_props,
    )


def _quantizable(graph: Any, layers: Collection[str]) -> set[Any]:
    """The layers' nodes, and the nodes `BETWEEN` whose sources and users are all among these."""

    def sources(node: Any) -> Iterator[Any]:
        """Nodes whose results a node takes; None for an input of the graph."""
        for value in node.inputs[:1] if node.op_type in MOVING else node.inputs:
            source = value.producer()
            if source is not None and source.op_type in MOVING:
                yield from sources(source)
            elif not value.is_initializer():
                yield source

    def users(node: Any) -> Iterator[Any]:
        """Nodes that take a node's results; None for an output of the graph."""
        for value in node.outputs:
            if value.is_graph_output():
                yield None
            for user in value.consumers():
                yield from users(user) if user.op_type in MOVING else [user]

    between = {node for node in graph if node.op_type in BETWEEN}
    inside = between | {node for node in graph if node.name in layers}
    while leaving := {
        node for node in between & inside if not inside.issuperset((*sources(node), *users(node)))
    }:
        inside -= leaving
    return inside


def _known_ranges(graph: Any, nodes: Collection[str]) -> dict[str, tuple[float, float]]:
    """Ranges that are not measured: around the sigmoids of equalized channels."""
    found: dict[str, tuple[float, float]] = {}
    for node in graph:
        if node.op_type == "Sigmoid" and node.name in nodes:
            (value,) = node.inputs
            product = value.producer()
            if product.op_type == "Mul":  # by the scales of equalized channels
                found |= {value.name: SIGMOID_RANGE, product.inputs[0].name: EQUALIZED_RANGE}
    return found


def quantize_weights(model: Any, layers: Collection[str]) -> dict[str, int]:
    """Store the weights of layers in int8, with a symmetric range per output channel.

    Cast and Mul restore them to float32. Runtimes fold these when they load the file, as other
    constants; a DequantizeLinear would run for each input.

    Returns:
        Operations by the type that they compute in.
    """
    ir: Any = importlib.import_module("onnx_ir")
    graph = model.graph
    others = len(graph) - len(layers)
    for node in [node for node in graph if node.name in layers]:
        weight = node.inputs[1]
        values = torch.from_numpy(weight.const_value.numpy().copy())
        transposed = node.op_type == "Conv" or node.attributes.get_int("transB", 0)
        axis = 0 if transposed else values.ndim - 1
        values, scale = quantize_weight(values, axis)
        scale = scale.view([-1 if place == axis else 1 for place in range(values.ndim)])
        weight.const_value = ir.tensor(values.numpy(), name=weight.name)
        weight.dtype = ir.DataType.INT8
        factor = ir.tensor(scale.numpy(), name=f"{weight.name}.scale")
        factor = ir.Value(name=factor.name, const_value=factor)
        graph.register_initializer(factor)
        cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
        product = ir.node("Mul", [cast.outputs[0], factor])
        graph.insert_before(node, [cast, product])
        node.replace_input_with(1, product.outputs[0])
    return {"float32 with int8 weights": len(layers), "float32": others}


def count_types(model: Any) -> dict[str, int]:
    """Count the nodes of an int8 graph by type, without conversions."""
    types: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        sources = [value.producer() for value in node.inputs if value and value.producer()]
        int8 = sources and all(source.op_type == "DequantizeLinear" for source in sources)
        types["int8" if int8 else "float32"] += 1
    return dict(types)
