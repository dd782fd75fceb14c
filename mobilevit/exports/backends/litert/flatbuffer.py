"""What stands in a LiteRT file, by the format's own schema: names, types, weights, metadata.

A file is a flatbuffer; what a network says of itself follows it as a zip archive of two files, as
TensorFlow Lite's metadata libraries do it for files that belong to a model.
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

from mobilevit.exports.spec import ExportError

FACTS, LABELS = "mobilevit.json", "labels.txt"
"""In the archive: texts by name, and class names, one a line."""

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operations that have weights, as their second input."""
BETWEEN = ("CAST", "DEQUANTIZE", "QUANTIZE")
"""Operations that compute nothing: they bring values from one type to another."""


class Graph:
    """A LiteRT file's content, to look at and to change."""

    def __init__(self, content: bytes) -> None:
        """Unpack it.

        Raises:
            ExportError: it is more than one graph.
        """
        self.schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
        self.model = self.schema.ModelT.InitFromObj(self.schema.Model.GetRootAs(content, 0))
        if len(self.model.subgraphs) != 1:
            raise ExportError("litert-torch has made a graph within the graph, not known here")
        (self.graph,) = self.model.subgraphs
        self._codes = _names(self.schema.BuiltinOperator)
        self._types = _names(self.schema.TensorType)

    def packed(self) -> bytes:
        """The content as bytes."""
        flatbuffers: Any = importlib.import_module("flatbuffers")
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def kind(self, operator: Any) -> str:
        """An operator's name, such as `CONV_2D`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Those that came first are kept in a byte of their own.
        return self._codes[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def dtype(self, tensor: Any) -> str:
        """What a tensor holds, such as `float32`."""
        return self._types[tensor.type].lower()

    def values(self, tensor: Any) -> np.ndarray | None:
        """Bytes of a constant tensor; None of one that is computed."""
        data: np.ndarray | None = self.model.buffers[tensor.buffer].data
        return None if data is None or not len(data) else np.asarray(data)

    def described(self, places: Sequence[int]) -> tuple[str, ...]:
        """Tensors in words: `image: uint8 [1, 256, 256, 3]`."""
        tensors = [self.graph.tensors[place] for place in places]
        return tuple(
            f"{tensor.name.decode()}: {self.dtype(tensor)} {[int(n) for n in tensor.shape]}"
            for tensor in tensors
        )

    def types(self) -> dict[str, int]:
        """How many operations compute in which type, by what they take; changes of type apart."""
        counted: Counter[str] = Counter()
        for operator in self.graph.operators:
            taken = [self.graph.tensors[place] for place in operator.inputs if place >= 0]
            computed = [tensor for tensor in taken if self.values(tensor) is None]
            if self.kind(operator) in BETWEEN:
                counted["between types"] += 1
            else:
                counted[self.dtype((computed or taken)[0])] += 1
        return dict(counted.most_common())

    def weights(self) -> Iterator[tuple[Any, Any, np.ndarray]]:
        """Operators with float32 weights, the tensors of those, and their values."""
        for operator in self.graph.operators:
            if self.kind(operator) not in WEIGHTED:
                continue
            tensor = self.graph.tensors[operator.inputs[1]]
            data = self.values(tensor)
            if data is not None and self.dtype(tensor) == "float32":
                yield operator, tensor, data.view(np.float32).reshape(tensor.shape)

    def name(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Name the inputs and outputs; other tensors by the layer that they come from."""
        for place, tensor in enumerate(self.graph.tensors):
            tensor.name = f"{_layer_of(tensor.name.decode())}:{place}".encode()
        # A signature keeps its values in the order of their names, a graph in that of the module.
        ends = [(self.graph.inputs, inputs), (self.graph.outputs, outputs)]
        for places, names in ends:
            for place, name in zip(places, names, strict=True):
                self.graph.tensors[place].name = name.encode()
        self.graph.name = b"main"

    def take_bytes(self) -> None:
        """Have a uint8 input turned to float32 by an operation that runtimes do not leave out.

        XNNPACK and GPUs take DEQUANTIZE, with a scale of 1 and no offset, where CAST would be left
        to a slower kernel.
        """
        schema = self.schema
        for operator in self.graph.operators:
            (given, *_), kind = operator.inputs, self.kind(operator)
            if kind == "CAST" and given in self.graph.inputs:
                self._set_dequantize(operator)
                scale = schema.QuantizationParametersT()
                scale.scale, scale.zeroPoint = [1.0], [0]
                self.graph.tensors[given].quantization = scale

    def halve_weights(self) -> None:
        """Keep weights in float16; they are float32 again by the time they are used."""
        for operator, tensor, values in list(self.weights()):
            self._compress(operator, tensor, values.astype(np.float16), None)

    def quantize_weights(self, kept: Collection[bytes], *, least: int) -> None:
        """Keep weights in 8 bits, with a symmetric range for each output channel.

        Args:
            kept: weights that stay, as bytes.
            least: values; smaller weights stay too.
        """
        for operator, tensor, values in list(self.weights()):
            if values.size < least or values.tobytes() in kept:
                continue
            axis = 3 if self.kind(operator) == "DEPTHWISE_CONV_2D" else 0
            others = tuple(place for place in range(values.ndim) if place != axis)
            scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
            scale = np.where(scale > 0, scale, np.float32(1))
            rounded = np.rint(values / scale).astype(np.int8)
            ranges = self.schema.QuantizationParametersT()
            ranges.scale = scale.reshape(-1)
            ranges.zeroPoint = np.zeros(scale.size, np.int64)
            ranges.quantizedDimension = axis
            self._compress(operator, tensor, rounded, ranges)

    def _compress(self, operator: Any, tensor: Any, values: np.ndarray, ranges: Any) -> None:
        """Put other values in a weight's place, and an operation that brings them back."""
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
        # The old values go where nothing else reads them.
        inputs = list(operator.inputs)  # what was read cannot be written to
        old, inputs[1] = inputs[1], len(graph.tensors) - 1
        operator.inputs = inputs
        if not any(old in other.inputs for other in graph.operators):
            self.model.buffers[tensor.buffer].data = None

    def _set_dequantize(self, operator: Any) -> None:
        """Make an operator a DEQUANTIZE."""
        schema, codes = self.schema, self.model.operatorCodes
        kind = schema.BuiltinOperator.DEQUANTIZE
        place = next((i for i, one in enumerate(codes) if one.builtinCode == kind), len(codes))
        if place == len(codes):
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = kind
            codes.append(code)
        # Version 3 has float16, version 5 a range for each channel.
        codes[place].version = max(codes[place].version, 5)
        operator.opcodeIndex = place
        operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = schema.DequantizeOptionsT()


def _names(kinds: Any) -> dict[int, str]:
    return {value: name for name, value in vars(kinds).items() if isinstance(value, int)}


def _layer_of(name: str) -> str:
    """The layer in a name that litert-torch gives: `a.b.Class_layer/a.Class_inner;2`."""
    first = name.partition(";")[0]
    return ".".join(
        part for _, part in re.findall(r"(?:^|/)([\w.]*?\.[A-Za-z0-9]+)_([^/]*)", first)
    )


def with_facts(content: bytes, texts: Mapping[str, str], classes: Sequence[str] | None) -> bytes:
    """Append an archive of texts to a flatbuffer."""
    archive = io.BytesIO(content)
    archive.seek(0, io.SEEK_END)
    # Not compressed: the library that reads it on Android takes nothing else.
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as files:
        # A date of its own for each file would make each export another.
        files.writestr(zipfile.ZipInfo(FACTS), json.dumps(dict(texts), ensure_ascii=False))
        if classes is not None:
            files.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in classes))
    return archive.getvalue()


def read_facts(path: Path) -> dict[str, str]:
    """The texts of the archive in a file.

    Raises:
        ExportError: there is none.
    """
    try:
        with zipfile.ZipFile(path) as files:
            texts: dict[str, str] = json.loads(files.read(FACTS))
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{path} is damaged, or no file of `mobilevit export`: {FACTS} is not in it ({error})"
        ) from error
    return texts
