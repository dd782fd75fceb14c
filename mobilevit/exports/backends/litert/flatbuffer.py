"""LiteRT files by the format's schema: names, types, metadata.

A file is a flatbuffer followed by a zip archive, in which TensorFlow Lite's metadata libraries keep
the files that belong to a model.
"""

import importlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit.exports.spec import ExportError

METADATA, LABELS = "mobilevit.json", "labels.txt"
"""Files of the archive: metadata as JSON, and class names, one a line."""

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operations that have weights, as their second input."""
CONVERSIONS = ("CAST", "DEQUANTIZE", "QUANTIZE")
"""Operations that only convert values from one type to another."""


class Graph:
    """The content of a LiteRT file, which can be changed."""

    def __init__(self, content: bytes) -> None:
        self.tools: Any = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
        self.model = self.tools.read_model_from_bytearray(content)
        (self.graph,) = self.model.subgraphs

    def packed(self) -> bytes:
        return bytes(self.tools.convert_object_to_bytearray(self.model))

    def op_name(self, operator: Any) -> str:
        return str(self.tools.opcode_to_name(self.model, operator.opcodeIndex))

    def dtype(self, tensor: Any) -> str:
        return str(self.tools.type_to_name(tensor.type)).lower()

    def values(self, tensor: Any) -> bytes | None:
        """The bytes of a constant tensor; None for one that is computed."""
        data = self.model.buffers[tensor.buffer].data
        return None if data is None else bytes(data)

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

    def layer_outputs(self, weights: Collection[bytes], min_size: int = 0) -> list[str]:
        """Names of the outputs of the layers with these float32 weights, or with fewer."""
        found = []
        for operator in self.graph.operators:
            if self.op_name(operator) in WEIGHTED:
                values = self.values(self.graph.tensors[operator.inputs[1]])
                if values is not None and (values in weights or len(values) < 4 * min_size):
                    found.append(self.graph.tensors[operator.outputs[0]].name.decode())
        return found

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
        schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
        for operator in self.graph.operators:
            first = operator.inputs[0]
            if self.op_name(operator) == "CAST" and first in self.graph.inputs:
                code = schema.OperatorCodeT()
                code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
                code.version = 2  # of int8 and uint8
                operator.opcodeIndex = len(self.model.operatorCodes)
                self.model.operatorCodes.append(code)
                operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
                operator.builtinOptions = schema.DequantizeOptionsT()
                scale = schema.QuantizationParametersT()
                scale.scale, scale.zeroPoint = [1.0], [0]
                self.graph.tensors[first].quantization = scale


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
