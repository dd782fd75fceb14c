"""OpenVINO files, converted from our ONNX graph, for x86 processors, Intel's above all, and Arm.

The ONNX graph has non-maximum suppression in one operation, and OpenVINO fuses attention into one.
"""

import contextlib
import importlib
import importlib.metadata
import io
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.onnx.backend import convert
from mobilevit.exports.quantize import layers_to_quantize
from mobilevit.exports.spec import ExportError, FileMetadata
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import PreparedModel

MODEL = "model.xml"
"""The graph; the weights are next to it in `model.bin`."""
METADATA = "mobilevit"
"""Key of the metadata in a file's runtime information."""
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
PRODUCTS = (*LAYERS, "ScaledDotProductAttention")
"""Layers and attention, whose products of two activations stay in float."""
MOVING = ("Concat", "Reshape", "Transpose")
"""Operations that compute nothing."""
NOT_COMPUTED = ("Constant", "Convert", "FakeQuantize", "Parameter", "Result")


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a folder of two files, `model.xml` and `model.bin`."""
    ov = _openvino()
    graph = convert(prepared)
    graph.metadata_props.clear()  # OpenVINO would store them under other keys
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "model.onnx"
        require("onnx_ir", extra="openvino").save(graph, file)
        model = ov.convert_model(str(file))
    if prepared.spec.quantize is not None:
        model = _quantize(model, prepared)
    model.set_friendly_name(prepared.metadata.config.model)
    for key, text in prepared.metadata.to_strings().items():
        model.set_rt_info(text, [METADATA, key])
    path.mkdir(exist_ok=True)
    # The graph has float16 weights where they do no harm; compression would round the others too.
    ov.save_model(model, str(path / MODEL), compress_to_fp16=False)
    _unindent(path / MODEL)
    types = _count_types(model)
    inputs, outputs = prepared.describe()
    operations = sum(types.values())
    return FileSummary(
        path=path, inputs=inputs, outputs=outputs, operations=operations, types=types
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


def _quantize(model: Any, prepared: PreparedModel) -> Any:
    """Quantize layers by ranges measured on the calibration images.

    NNCF's mode for transformers quantizes layers only, and moves outliers in the inputs of linear
    layers into their weights (SmoothQuant).
    """
    nncf = require("nncf", extra="openvino")
    images = [image.numpy() for image in prepared.calibration()]
    layers = layers_to_quantize(prepared)
    ignored = [
        one.get_friendly_name()
        for one in model.get_ops()
        if one.get_type_name() in PRODUCTS and one.get_friendly_name().split("/")[0] not in layers
    ]
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=ignored),
        )


def _count_types(model: Any) -> dict[str, int]:
    """Count the operations that depend on the input by the type that they compute in."""
    types: Counter[str] = Counter()
    computed: dict[str, set[str]] = {}
    """Such an operation -> its own type, or of one of `MOVING` the types of its sources."""
    for one in model.get_ordered_ops():
        op_type = one.get_type_name()
        nodes = [port.get_source_output().get_node() for port in one.inputs()]
        sources = [computed.get(node.get_friendly_name(), set()) for node in nodes]
        known = set().union(*sources)
        if not known and op_type != "Parameter":
            continue
        computed[one.get_friendly_name()] = known if op_type in MOVING else {op_type}
        if op_type not in NOT_COMPUTED:
            int8 = op_type in LAYERS and "FakeQuantize" in known
            types["int8" if int8 else one.get_output_element_type(0).to_dtype().name] += 1
    return dict(types)
