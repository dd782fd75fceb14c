"""OpenVINO files, converted from our ONNX graph: for Intel's processors, and others of x86, Arm.

ONNX's graph has non-maximum suppression as one operation, and OpenVINO reads attention out of it as
one too.
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

from mobilevit.exports.backends.onnx.backend import converted
from mobilevit.exports.prepare import Prepared, Written, need, quiet
from mobilevit.exports.sensitivity import quantised_layers
from mobilevit.exports.spec import Dynamic, ExportError, FileFacts

MODEL = "model.xml"
"""The graph; the weights lie beside it in `model.bin`."""
FACTS = "mobilevit"
"""Where in a file's runtime information its facts are."""
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""What convolutions and linear layers become."""
PRODUCTS = ("MatMul", "ScaledDotProductAttention")
"""What multiplies two results of the graph; that is attention's, and stays float."""
MOVING = ("Concat", "Reshape", "Transpose")
"""What computes nothing."""
NOT_COMPUTED = ("Constant", "Convert", "FakeQuantize", "Parameter", "Result")
"""What does not count as an operation."""


def write(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as a folder of two files, `model.xml` and `model.bin`.

    Raises:
        ExportError: such files cannot be made.
        MissingExtraError: openvino, onnx, onnxscript or, to quantise, nncf is not installed.
    """
    ov = _openvino()
    quantize = prepared.request.quantize
    layers = None if quantize is None else quantised_layers(prepared)
    graph = converted(prepared)
    graph.ClearField("metadata_props")  # OpenVINO would keep them under names of its own
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "model.onnx"
        file.write_bytes(graph.SerializeToString())
        model = ov.convert_model(str(file))
    if layers is not None:
        model = _quantised(model, prepared, layers)
    model.set_friendly_name(prepared.facts.config.model)
    for name, text in prepared.facts.texts().items():
        model.set_rt_info(text, [FACTS, name])
    path.mkdir(exist_ok=True)
    # What is float16 is so in the graph: compressing the rest too would round what stays float32.
    ov.save_model(model, str(path / MODEL), compress_to_fp16=False)
    _unindent(path / MODEL)
    types = _types(model)
    dynamic = prepared.request.dynamic
    return Written(
        path=path,
        inputs=tuple(_described(one, dynamic) for one in model.inputs),
        outputs=tuple(_described(one, dynamic) for one in model.outputs),
        nodes=sum(types.values()),
        types=types,
    )


class OpenVinoRunner:
    """A folder of OpenVINO files in OpenVINO, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open a folder.

        Raises:
            ExportError: it is damaged, or not of this library.
        """
        ov = _openvino()
        core = ov.Core()
        try:
            model = core.read_model(str(path / MODEL))
            self._model = core.compile_model(
                model,
                "CPU",
                {
                    # The usual precision is bfloat16 where the processor has it.
                    "INFERENCE_PRECISION_HINT": "f32",
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                },
            )
        except RuntimeError as error:
            raise ExportError(
                f"{path} holds no {MODEL} and model.bin that OpenVINO runs: {error}"
            ) from error
        texts = model.get_rt_info([FACTS]).value if model.has_rt_info([FACTS]) else {}
        self.facts = FileFacts.read(texts, file=path)
        self.runtime = f"openvino {importlib.metadata.version('openvino')}"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch; see `mobilevit.exports.backends.registry.Runner`.

        Raises:
            ExportError: the file does not take such images.
        """
        try:
            said = self._model(images)
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot run the file on {images.dtype} {list(images.shape)}: {error}"
            ) from error
        return tuple(said[output] for output in self._model.outputs)


def open_file(path: Path, threads: int) -> OpenVinoRunner:
    """Open a folder of OpenVINO files.

    Raises:
        ExportError: it is not of this library.
        MissingExtraError: openvino is not installed.
    """
    return OpenVinoRunner(path, threads)


def _unindent(file: Path) -> None:
    """Take the space between tags out of a graph: a sixth of it, much of a small file."""
    file.write_text(re.sub(r">\s+<", "><", file.read_text("utf-8")), "utf-8")


def _openvino() -> Any:
    """The package, without the part that reports its use to its makers.

    Raises:
        MissingExtraError: it is not installed.
    """
    # It and nncf do without where this cannot be imported; they would report without asking.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    need("openvino", extra="openvino")
    return importlib.import_module("openvino")


def _quantised(model: Any, prepared: Prepared, layers: Collection[str]) -> Any:
    """Quantise layers by ranges that are measured on photos.

    NNCF's way for transformers: nothing but layers and what only moves values, and large values of
    what linear layers take are moved into their weights.
    """
    need("nncf", extra="openvino")
    nncf: Any = importlib.import_module("nncf")
    photos = [photo.numpy() for photo in prepared.calibration()]
    varying = _varying(model)
    ignored = []
    for one in varying.values():
        name, kind = one.get_friendly_name(), one.get_type_name()
        product = kind in PRODUCTS and all(source in varying for source in _sources(one))
        if product or (kind in LAYERS and name.split("/")[0] not in layers):
            ignored.append(name)
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(photos),
            subset_size=len(photos),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored),
        )


def _sources(operation: Any) -> list[str]:
    """Names of the operations whose results one takes."""
    nodes = [port.get_source_output().get_node() for port in operation.inputs()]
    return [node.get_friendly_name() for node in nodes]


def _varying(model: Any) -> dict[str, Any]:
    """The operations whose results hang on the input, by name."""
    found: dict[str, Any] = {}
    for one in model.get_ordered_ops():
        if one.get_type_name() == "Parameter" or any(name in found for name in _sources(one)):
            found[one.get_friendly_name()] = one
    return found


def _types(model: Any) -> dict[str, int]:
    """Count operations by what they compute in, or have computed."""
    kinds: Counter[str] = Counter()
    varying = _varying(model)
    for one in varying.values():
        if one.get_type_name() in NOT_COMPUTED:
            continue
        in_int8 = one.get_type_name() in LAYERS and "FakeQuantize" in _given(one, varying)
        kinds["int8" if in_int8 else one.get_output_element_type(0).to_dtype().name] += 1
    return dict(kinds)


def _given(operation: Any, varying: Mapping[str, Any]) -> set[str]:
    """Kinds of the operations that computed what one takes."""
    kinds: set[str] = set()
    for name in _sources(operation):
        source = varying.get(name)
        if source is not None:
            kind = source.get_type_name()
            kinds |= _given(source, varying) if kind in MOVING else {kind}
    return kinds


def _described(port: Any, dynamic: Dynamic | None) -> str:
    varying = iter({"batch": ["batch"], "size": ["height", "width"]}.get(dynamic or "", []))
    sides = [
        next(varying, "any") if side.is_dynamic else str(side.get_length())
        for side in port.get_partial_shape()
    ]
    dtype = port.get_element_type().to_dtype().name
    return f"{port.get_any_name()}: {dtype} [{', '.join(sides)}]"
