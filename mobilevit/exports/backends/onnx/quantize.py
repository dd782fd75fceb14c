"""ONNX graphs in 8 bits: all that layers compute, or their weights alone."""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.exports.quantize import EQUALIZED_RANGE

LAYERS = ("Conv", "Gemm", "MatMul")
"""What convolutions and linear layers become."""
BETWEEN = ("Add", "Mul", "Relu", "Sigmoid")
"""What is computed in 8 bits where it stands between layers that are: SiLU, and shortcuts."""
MOVING = ("Reshape", "Transpose")
"""What computes nothing."""
SIGMOID_REACH = (-8.0, 8.0)
"""Where a sigmoid of 8 bits changes."""


def quantize_int8(
    model: Any, layers: Collection[str], images: Sequence[Mapping[str, np.ndarray]]
) -> Any:
    """Quantise what layers take and give and hold, by ranges that are measured on images.

    Weights have a symmetric range for each output channel. What layers take is uint8: ONNX Runtime
    multiplies that by int8 in one instruction on x86, and int8 by int8 in several. Linear layers
    give float32, which norms and attention take up.

    Args:
        model: an `onnx.ModelProto` whose nodes have names.
        layers: names of the nodes to quantise.
        images: inputs by name.

    Returns:
        Another `onnx.ModelProto`, in pairs of QuantizeLinear and DequantizeLinear.
    """
    graph = model.graph
    nodes = _between(graph, layers)
    if not nodes:
        return model
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Photos(quantization.CalibrationDataReader):
        """The images one after the other."""

        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            """The next input."""
            return next(self.left, None)

    given = onnx.ModelProto()
    given.CopyFrom(model)
    # Without this mark onnxruntime advises to prepare the graph; ours is as that would make it.
    onnx.helper.set_model_props(given, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            given,
            str(path),
            Photos(),
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
                    for name, (low, high) in _known(graph, nodes).items()
                },
            },
        )
        quantised = onnx.load(path)
    for field in ("opset_import", "metadata_props"):
        quantised.ClearField(field)
        getattr(quantised, field).extend(getattr(model, field))
    quantised.ir_version, quantised.producer_name = model.ir_version, model.producer_name
    quantised.ClearField("producer_version")
    return quantised


def _between(graph: Any, layers: Collection[str]) -> set[str]:
    """Names of the layers, and of the nodes between them that can be computed in 8 bits.

    Those are nodes that take nothing and give nothing to any other but these and layers.
    """
    made = {output: node for node in graph.node for output in node.output}
    taken: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            taken.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    results = {value.name for value in graph.output}

    def before(node: Any) -> Iterator[str | None]:
        """Names of the nodes that give to this one; None for an input of the graph."""
        for name in node.input[:1] if node.op_type in MOVING else node.input:
            if name in constants:
                continue
            source = made.get(name)
            if source is not None and source.op_type in MOVING:
                yield from before(source)
            else:
                yield None if source is None else source.name

    def after(node: Any) -> Iterator[str | None]:
        """Names of the nodes that take from this one; None for an output of the graph."""
        for name in node.output:
            if name in results:
                yield None
            for target in taken.get(name, []):
                if target.op_type in MOVING:
                    yield from after(target)
                else:
                    yield target.name

    chosen = {node.name for node in graph.node if node.name in layers}
    between = [node for node in graph.node if node.op_type in BETWEEN]
    inside = chosen | {node.name for node in between}
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


def _known(graph: Any, nodes: Collection[str]) -> dict[str, tuple[float, float]]:
    """Ranges that need no measuring: around the sigmoids of channels that were evened out."""
    made = {output: node for node in graph.node for output in node.output}
    found: dict[str, tuple[float, float]] = {}
    for node in graph.node:
        if node.op_type == "Sigmoid" and node.name in nodes:
            (taken,) = node.input
            if made[taken].op_type == "Mul":  # by the channels' own numbers
                found |= {taken: SIGMOID_REACH, made[taken].input[0]: EQUALIZED_RANGE}
    return found


def quantize_weights(model: Any, layers: Collection[str]) -> Any:
    """Keep weights in int8, with a symmetric range for each output channel; compute in float32.

    They are turned into floats by Cast and Mul. A runtime does that once, when it loads the file,
    as with all that is constant; it would leave a DequantizeLinear for each run.

    Args:
        model: an `onnx.ModelProto`, which is changed.
        layers: names of the nodes whose weights are meant.
    """
    onnx: Any = importlib.import_module("onnx")
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.name in layers:
            name = node.input[1]
            kept = weights[name]
            values = onnx.numpy_helper.to_array(kept)
            turned = {one.name: one.i for one in node.attribute}.get("transB", 0)
            channel = 0 if node.op_type == "Conv" or turned else values.ndim - 1
            others = tuple(axis for axis in range(values.ndim) if axis != channel)
            reach = np.abs(values).max(axis=others, keepdims=True)
            scale = np.where(reach > 0, reach / 127, 1).astype(np.float32)
            kept.CopyFrom(
                onnx.numpy_helper.from_array(np.rint(values / scale).astype(np.int8), name)
            )
            graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
            helper = onnx.helper
            nodes += [
                helper.make_node("Cast", [name], [f"{name}.whole"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.whole", f"{name}.scale"], [f"{name}.float"]),
            ]
            node.input[1] = f"{name}.float"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def count_types(model: Any) -> dict[str, int]:
    """Count the nodes of a quantised graph by what they compute in.

    Those that only turn floats into 8 bits or back are not counted.
    """
    graph = model.graph
    made = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    kinds: Counter[str] = Counter()
    for node in graph.node:
        sources = [made[name] for name in node.input if name in made]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type in ("Cast", "Mul") and _constant(node, made, constants):
            continue
        if sources and all(source.op_type == "DequantizeLinear" for source in sources):
            kinds["int8"] += 1
        elif node.op_type in LAYERS and _constant(made.get(node.input[1]), made, constants):
            kinds["float32 with int8 weights"] += 1
        else:
            kinds["float32"] += 1
    return dict(kinds)


def _constant(node: Any, made: Mapping[str, Any], constants: Collection[str]) -> bool:
    """Whether a node computes something from constants alone."""
    return node is not None and all(
        name in constants or _constant(made.get(name), made, constants) for name in node.input
    )
