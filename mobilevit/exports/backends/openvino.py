"""OpenVINO files, converted from our ONNX graph, for x86 processors, Intel's above all, and Arm.

The ONNX graph has non-maximum suppression in one operation, and OpenVINO fuses attention into one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.onnx.backend import convert
from mobilevit.exports.quantize import layers_to_quantize
from mobilevit.exports.spec import Dynamic, ExportError, FileMetadata
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import PreparedModel

MODEL = "model.xml"
"""The graph; the weights are next to it in `model.bin`."""
METADATA = "mobilevit"
"""Key of the metadata in a file's runtime information."""
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
PRODUCTS = ("MatMul", "ScaledDotProductAttention")
"""Products; those of two activations, which only attention has, stay in float."""
MOVING = ("Concat", "Reshape", "Transpose")
"""Operations that compute nothing."""
NOT_COMPUTED = ("Constant", "Convert", "FakeQuantize", "Parameter", "Result")


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a folder of two files, `model.xml` and `model.bin`."""
    ov = _openvino()
    quantize = prepared.spec.quantize
    layers = None if quantize is None else layers_to_quantize(prepared)
    graph = convert(prepared)
    graph.ClearField("metadata_props")  # OpenVINO would store them under other keys
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "model.onnx"
        file.write_bytes(graph.SerializeToString())
        model = ov.convert_model(str(file))
    if layers is not None:
        model = _quantize(model, prepared, layers)
    model.set_friendly_name(prepared.metadata.config.model)
    for key, text in prepared.metadata.to_strings().items():
        model.set_rt_info(text, [METADATA, key])
    path.mkdir(exist_ok=True)
    # The graph has float16 weights where they do no harm; compression would round the others too.
    ov.save_model(model, str(path / MODEL), compress_to_fp16=False)
    _unindent(path / MODEL)
    types = _count_types(model)
    dynamic = prepared.spec.dynamic
    return FileSummary(
        path=path,
        inputs=tuple(_describe(one, dynamic) for one in model.inputs),
        outputs=tuple(_describe(one, dynamic) for one in model.outputs),
        operations=sum(types.values()),
        types=types,
    )


class OpenVinoRunner:
    """A folder of OpenVINO files in OpenVINO, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        ov = _openvino()
        core = ov.Core()
        try:
            model = core.read_model(str(path / MODEL))
            self._model = core.compile_model(
                model,
                "CPU",
                {
                    # The default is bfloat16 where the processor has it.
                    "INFERENCE_PRECISION_HINT": "f32",
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                },
            )
        except RuntimeError as error:
            raise ExportError(
                f"{path} has no {MODEL} and model.bin that OpenVINO supports: {error}"
            ) from error
        strings = model.get_rt_info([METADATA]).value if model.has_rt_info([METADATA]) else {}
        self.metadata = FileMetadata.from_strings(strings, file=path)
        self.runtime = f"openvino {importlib.metadata.version('openvino')}"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            outputs = self._model(images)
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot run the file on {images.dtype} {list(images.shape)}: {error}"
            ) from error
        return tuple(outputs[port] for port in self._model.outputs)


BACKEND = Backend(
    name="openvino",
    suffix=".openvino",
    extra="openvino",
    write_prepared=write,
    open=OpenVinoRunner,
    is_folder=True,
    quantize_modes=("int8",),
    supports_nms=True,
)


def _unindent(file: Path) -> None:
    """Remove the space between tags, which is a sixth of a graph."""
    file.write_text(re.sub(r">\s+<", "><", file.read_text("utf-8")), "utf-8")


def _openvino() -> Any:
    """Import the package without its telemetry."""
    # It and nncf would report usage without asking; both work where this cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    require("openvino", extra="openvino")
    return importlib.import_module("openvino")


def _quantize(model: Any, prepared: PreparedModel, layers: Collection[str]) -> Any:
    """Quantize layers by ranges measured on the calibration images.

    NNCF's mode for transformers quantizes layers only, and moves outliers in the inputs of linear
    layers into their weights (SmoothQuant).
    """
    require("nncf", extra="openvino")
    nncf: Any = importlib.import_module("nncf")
    images = [image.numpy() for image in prepared.calibration()]
    dependent = _input_dependent(model)
    ignored = []
    for one in dependent.values():
        name, op_type = one.get_friendly_name(), one.get_type_name()
        product = op_type in PRODUCTS and all(source in dependent for source in _sources(one))
        if product or (op_type in LAYERS and name.split("/")[0] not in layers):
            ignored.append(name)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored),
        )


def _sources(operation: Any) -> list[str]:
    nodes = [port.get_source_output().get_node() for port in operation.inputs()]
    return [node.get_friendly_name() for node in nodes]


def _input_dependent(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in model.get_ordered_ops():
        if one.get_type_name() == "Parameter" or any(name in found for name in _sources(one)):
            found[one.get_friendly_name()] = one
    return found


def _count_types(model: Any) -> dict[str, int]:
    types: Counter[str] = Counter()
    dependent = _input_dependent(model)
    for one in dependent.values():
        if one.get_type_name() in NOT_COMPUTED:
            continue
        in_int8 = one.get_type_name() in LAYERS and "FakeQuantize" in _input_types(one, dependent)
        types["int8" if in_int8 else one.get_output_element_type(0).to_dtype().name] += 1
    return dict(types)


def _input_types(operation: Any, dependent: Mapping[str, Any]) -> set[str]:
    """Types of the operations that computed an operation's inputs, not counting `MOVING`."""
    types: set[str] = set()
    for name in _sources(operation):
        source = dependent.get(name)
        if source is not None:
            op_type = source.get_type_name()
            moves = op_type in MOVING
            types |= _input_types(source, dependent) if moves else {op_type}
    return types


def _describe(port: Any, dynamic: Dynamic | None) -> str:
    names = iter({"batch": ["batch"], "size": ["height", "width"]}.get(dynamic or "", []))
    sides = [
        next(names, "any") if side.is_dynamic else str(side.get_length())
        for side in port.get_partial_shape()
    ]
    dtype = port.get_element_type().to_dtype().name
    return f"{port.get_any_name()}: {dtype} [{', '.join(sides)}]"
