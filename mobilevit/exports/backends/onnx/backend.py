"""ONNX files, by torch.export: for ONNX Runtime on phones, servers and in browsers."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilevit.exports.backends.onnx.quantize import LAYERS, computed_in, in_int8, with_int8_weights
from mobilevit.exports.prepare import Prepared, Written, need, quiet
from mobilevit.exports.sensitivity import layers_of, quantised_layers
from mobilevit.exports.spec import Dynamic, ExportError, FileFacts

OPSET = 18
"""ONNX Runtime reads it from version 1.14 of 2023 on."""
IR_VERSION = 8
"""Of the file's own form: the one that came with this opset; an older runtime refuses a later."""
ERRORS = (
    "EPFail",
    "EngineError",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NotImplemented",
    "RuntimeException",
)
"""ONNX Runtime's own exceptions, which have no class in common."""


def write(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as one ONNX file of opset 18.

    Quantised to `int8`, convolutions, linear layers and the activations between them compute in 8
    bits; to `int8-weights`, weights alone are kept in 8 bits, and everything computes in float32.

    Raises:
        ExportError: such a file cannot be made.
        MissingExtraError: onnx, onnxscript or, for int8, onnxruntime is not installed.
    """
    quantize = prepared.request.quantize
    if quantize is None:
        model = converted(prepared)
        types = {}
    else:
        layers = quantised_layers(prepared)
        if quantize.kind == "int8":
            need("onnxruntime", extra="onnx")
            photos = [{prepared.input: photo.numpy()} for photo in prepared.calibration()]
            model = in_int8(converted(prepared), layers, photos)
        else:
            model = with_int8_weights(converted(prepared), layers)
        types = computed_in(model)
    path.write_bytes(model.SerializeToString())
    return Written(
        path=path,
        inputs=tuple(map(_described, model.graph.input)),
        outputs=tuple(map(_described, model.graph.output)),
        nodes=len(model.graph.node),
        types=types,
    )


def converted(prepared: Prepared) -> Any:
    """A prepared network as an `onnx.ModelProto`, whatever is to be quantised still in float.

    Convolutions and linear layers are called as they are in `prepared.module.named_modules()`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    need("onnx", "onnxscript", extra="onnx")
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            prepared.module,
            (prepared.example,),
            input_names=[prepared.input],
            output_names=list(prepared.outputs),
            dynamic_shapes=prepared.shapes,
            opset_version=OPSET,
            custom_translation_table=_translations(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _name_layers(program.model.graph, layers_of(prepared.module))
    _tidy(program.model, prepared.request.dynamic)
    program.model.ir_version = IR_VERSION
    program.model.producer_name = "mobilevit"
    program.model.metadata_props.update(prepared.facts.texts())
    return program.model_proto


class OnnxRunner:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file.

        Raises:
            ExportError: it is damaged, or not of this library.
        """
        onnxruntime: Any = importlib.import_module("onnxruntime")
        state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        self._errors: tuple[type[Exception], ...] = tuple(getattr(state, one) for one in ERRORS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3  # errors
        providers = ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except self._errors as error:
            raise ExportError(
                f"{path} is damaged, or no ONNX file that ONNX Runtime {onnxruntime.__version__} "
                f"runs: {error}"
            ) from error
        texts = self.session.get_modelmeta().custom_metadata_map
        self.facts = FileFacts.read(texts, file=path)
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._input: str = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch; see `mobilevit.exports.backends.registry.Runner`.

        Raises:
            ExportError: the file does not take such images.
        """
        try:
            return tuple(self.session.run(None, {self._input: images}))
        except self._errors as error:
            raise ExportError(
                f"ONNX Runtime cannot run the file on {images.dtype} {list(images.shape)}: {error}"
            ) from error


def open_file(path: Path, threads: int) -> OnnxRunner:
    """Open an ONNX file.

    Raises:
        ExportError: it is damaged, or not of this library.
        MissingExtraError: onnxruntime is not installed.
    """
    need("onnxruntime", extra="onnx")
    return OnnxRunner(path, threads)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operations that `mobilevit.exports.wrap` defines, in ONNX's."""
    op: Any = importlib.import_module("onnxscript").opset18

    def suppression(boxes: Any, scores: Any, most: int, overlap: float, least_score: float) -> Any:
        return op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[overlap]),
            op.Constant(value_floats=[least_score]),
        )

    return {torch.ops.mobilevit.suppress.default: suppression}


def _name_layers(graph: Any, layers: Mapping[str, nn.Module]) -> None:
    """Call the nodes of layers what the layers are called; the exporter notes where each is of."""
    for node in graph:
        # Modules from the outermost on, then the operation.
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if node.op_type in LAYERS and len(scopes) > 1 and scopes[-2] in layers:
            node.name = scopes[-2]


def _tidy(model: Any, dynamic: Dynamic | None) -> None:
    """Take out notes on where operations came from, paths here; name the sizes that vary."""
    graph = model.graph
    named: dict[str, str] = {}
    if dynamic == "size":
        varying = [str(side) for side in graph.inputs[0].shape if not isinstance(side, int)]
        named = dict(zip(varying, ("height", "width"), strict=True))
    results = [value for node in graph for value in node.outputs]
    for value in (*graph.inputs, *results, *graph.initializers.values()):
        value.metadata_props.clear()
        if value.shape is not None and named:
            value.shape = type(value.shape)([_renamed(side, named) for side in value.shape])
    for holder in (*graph, graph, model):
        holder.metadata_props.clear()
        holder.doc_string = None


def _renamed(side: Any, named: dict[str, str]) -> int | str | None:
    if isinstance(side, int):
        return side
    text = None if side.value is None else str(side.value)
    return text and re.sub(r"\w+", lambda word: named.get(word[0], word[0]), text)


def _described(value: Any) -> str:
    onnx: Any = importlib.import_module("onnx")
    tensor = value.type.tensor_type
    shape = ", ".join(str(side.dim_param or side.dim_value) for side in tensor.shape.dim)
    return f"{value.name}: {onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)} [{shape}]"
