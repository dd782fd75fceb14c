"""LiteRT files by the format's schema: names, types, weights, metadata.

A file is a flatbuffer followed by a zip archive, in which TensorFlow Lite's metadata libraries keep
the files that belong to a model.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevit.exports.spec import ExportError
from mobilevit.utils.quantization import quantize_weight

METADATA, LABELS = "mobilevit.json", "labels.txt"
"""Files of the archive: metadata as JSON, and class names, one a line."""

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operations that have weights, as their second input."""
CONVERSIONS = ("CAST", "DEQUANTIZE", "QUANTIZE")
"""Operations that only convert values from one type to another."""


class Graph:
    """The content of a LiteRT file, which can be changed."""

    def __init__(self, content: bytes) -> None:
        self.schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
        self.model = self.schema.ModelT.InitFromObj(self.schema.Model.GetRootAs(content, 0))
        for buffer in self.model.buffers:
            if buffer.size:  # stored behind the flatbuffer
                end = buffer.offset + buffer.size
                buffer.data = np.frombuffer(content[buffer.offset : end], np.uint8)
                buffer.offset = buffer.size = 0
        if len(self.model.subgraphs) != 1:
            raise ExportError("the file has several subgraphs, which is not supported")
        (self.graph,) = self.model.subgraphs
        self._codes = _names(self.schema.BuiltinOperator)
        self._types = _names(self.schema.TensorType)

    def packed(self) -> bytes:
        flatbuffers: Any = importlib.import_module("flatbuffers")
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def op_name(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        # The first 127 operators have a field of their own.
        return self._codes[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def dtype(self, tensor: Any) -> str:
        return self._types[tensor.type].lower()

    def values(self, tensor: Any) -> np.ndarray | None:
        """The bytes of a constant tensor; None for one that is computed."""
        data: np.ndarray | None = self.model.buffers[tensor.buffer].data
        return None if data is None or not len(data) else np.asarray(data)

    def describe(self, tensors: Sequence[int]) -> tuple[str, ...]:
        """Tensors in words: `image: uint8 [1, 256, 256, 3]`."""
        return tuple(
            f"{tensor.name.decode()}: {self.dtype(tensor)} {[int(n) for n in tensor.shape]}"
            for tensor in (self.graph.tensors[index] for index in tensors)
        )

    def count_types(self) -> dict[str, int]:
        """Operations by the type of their first input; conversions are counted apart."""
        counted: Counter[str] = Counter()
        for operator in self.graph.operators:
            inputs = [self.graph.tensors[index] for index in operator.inputs if index >= 0]
            computed = [tensor for tensor in inputs if self.values(tensor) is None]
            if self.op_name(operator) in CONVERSIONS:
                counted["conversions"] += 1
            else:
                counted[self.dtype((computed or inputs)[0])] += 1
        return dict(counted.most_common())

    def weights(self) -> Iterator[tuple[Any, Any, np.ndarray]]:
        """Operators with float32 weights, the weights' tensors, and their values."""
        for operator in self.graph.operators:
            if self.op_name(operator) not in WEIGHTED:
                continue
            tensor = self.graph.tensors[operator.inputs[1]]
            data = self.values(tensor)
            if data is not None and self.dtype(tensor) == "float32":
                yield operator, tensor, data.view(np.float32).reshape(tensor.shape)

    def layer_outputs(self, weights: Collection[bytes]) -> list[str]:
        """Names of the outputs of the layers whose float32 weights are these bytes."""
        return [
            self.graph.tensors[operator.outputs[0]].name.decode()
            for operator, _, values in self.weights()
            if values.tobytes() in weights
        ]

    def set_names(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Name the inputs and outputs; other tensors get the name of their layer."""
        for index, tensor in enumerate(self.graph.tensors):
            tensor.name = f"{_layer_of(tensor.name.decode())}:{index}".encode()
        # In the graph, which has the module's order; signatures are sorted by name.
        for tensors, names in ((self.graph.inputs, inputs), (self.graph.outputs, outputs)):
            for index, name in zip(tensors, names, strict=True):
                self.graph.tensors[index].name = name.encode()
        self.graph.name = b"main"

    def dequantize_input(self) -> None:
        """Convert a uint8 input to float32 by DEQUANTIZE with a scale of 1, not by CAST.

        XNNPACK and GPU delegates take DEQUANTIZE, but leave CAST to a slower kernel.
        """
        schema = self.schema
        for operator in self.graph.operators:
            first = operator.inputs[0]
            if self.op_name(operator) == "CAST" and first in self.graph.inputs:
                self._set_dequantize(operator)
                scale = schema.QuantizationParametersT()
                scale.scale, scale.zeroPoint = [1.0], [0]
                self.graph.tensors[first].quantization = scale

    def halve_weights(self) -> None:
        """Store weights in float16; they are dequantized to float32 when a file is loaded."""
        for operator, tensor, values in list(self.weights()):
            self._compress(operator, tensor, values.astype(np.float16), None)

    def quantize_weights(self, float_weights: Collection[bytes], *, min_size: int) -> None:
        """Store weights in int8, with a symmetric range per output channel.

        Those in `float_weights`, as bytes, and those of fewer than `min_size` values stay in
        float32.
        """
        for operator, tensor, values in list(self.weights()):
            if values.size < min_size or values.tobytes() in float_weights:
                continue
            axis = 3 if self.op_name(operator) == "DEPTHWISE_CONV_2D" else 0
            rounded, scale = quantize_weight(torch.from_numpy(values.copy()), axis)
            ranges = self.schema.QuantizationParametersT()
            ranges.scale = scale.numpy()
            ranges.zeroPoint = np.zeros(len(scale), np.int64)
            ranges.quantizedDimension = axis
            self._compress(operator, tensor, rounded.numpy(), ranges)

    def _compress(self, operator: Any, tensor: Any, values: np.ndarray, ranges: Any) -> None:
        """Replace a weight by smaller values and an operation that restores it."""
        schema, graph = self.schema, self.graph
        buffer = schema.BufferT()
        buffer.data = values.reshape(-1).view(np.uint8)
        self.model.buffers.append(buffer)
        small = schema.TensorT()
        small.shape, small.buffer = tensor.shape, len(self.model.buffers) - 1
        small.type = getattr(schema.TensorType, values.dtype.name.upper())
        small.name = tensor.name + b":" + values.dtype.name.encode()
        small.quantization = ranges
        back = schema.TensorT()
        back.shape, back.type, back.buffer = tensor.shape, tensor.type, 0
        back.name = tensor.name + b":float32"
        graph.tensors += [small, back]
        restore = schema.OperatorT()
        restore.inputs, restore.outputs = [len(graph.tensors) - 2], [len(graph.tensors) - 1]
        self._set_dequantize(restore)
        graph.operators.insert(graph.operators.index(operator), restore)
        # The old values are removed unless another operator reads them.
        inputs = list(operator.inputs)  # a copy: arrays of the flatbuffer are read-only
        old, inputs[1] = inputs[1], len(graph.tensors) - 1
        operator.inputs = inputs
        if not any(old in other.inputs for other in graph.operators):
            self.model.buffers[tensor.buffer].data = None

    def _set_dequantize(self, operator: Any) -> None:
        schema, codes = self.schema, self.model.operatorCodes
        kind = schema.BuiltinOperator.DEQUANTIZE
        index = next((i for i, one in enumerate(codes) if one.builtinCode == kind), len(codes))
        if index == len(codes):
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = kind
            codes.append(code)
        # Version 3 added float16, version 5 a range per channel.
        codes[index].version = max(codes[index].version, 5)
        operator.opcodeIndex = index
        operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = schema.DequantizeOptionsT()


def _names(kinds: Any) -> dict[int, str]:
    return {value: name for name, value in vars(kinds).items() if isinstance(value, int)}


def _layer_of(name: str) -> str:
    """The layer in a name by litert-torch: `layer.inner` of `a.b.Class_layer/a.Class_inner;2`."""
    first = name.partition(";")[0]
    return ".".join(
        part for _, part in re.findall(r"(?:^|/)([\w.]*?\.[A-Za-z0-9]+)_([^/]*)", first)
    )


def append_metadata(
    content: bytes, strings: Mapping[str, str], classes: Sequence[str] | None
) -> bytes:
    """Append the archive to a flatbuffer."""
    archive = io.BytesIO(content)
    archive.seek(0, io.SEEK_END)
    # Not compressed, which is all that the library that reads it on Android supports.
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as files:
        # Without dates, so that two exports of a network are the same bytes.
        files.writestr(zipfile.ZipInfo(METADATA), json.dumps(dict(strings), ensure_ascii=False))
        if classes is not None:
            files.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in classes))
    return archive.getvalue()


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in a file's archive."""
    try:
        with zipfile.ZipFile(path) as files:
            strings: dict[str, str] = json.loads(files.read(METADATA))
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{path} is damaged, or was not written by `mobilevit export`: it has no {METADATA} "
            f"({error})"
        ) from error
    return strings
