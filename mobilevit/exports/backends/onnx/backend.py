"""ONNX files, by torch.export, for ONNX Runtime on phones, servers and in browsers."""

import ast
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.onnx.quantize import (
    LAYERS,
    count_types,
    quantize_int8,
    quantize_weights,
)
from mobilevit.exports.quantize import layers_to_quantize, quantizable_layers
from mobilevit.exports.spec import ExportError, FileMetadata
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import PreparedModel

OPSET = 18
"""For ONNX Runtime 1.14 (2023) and later."""
MIN_INT8_CHANNELS = 32
"""Of an inverted residual's input: with fewer, ONNX Runtime needs longer for SiLU in 8 bits, which
is two operations, than its convolutions save; in float, SiLU is one fused operation."""
IR_VERSION = 8
"""Of the file format: the one released with this opset; older runtimes refuse later ones."""


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as one ONNX file of opset 18.

    In mode `int8`, convolutions, linear layers and the activations between them compute in int8; in
    `int8-weights`, only weights are stored in int8, and everything computes in float32.
    """
    model = convert(prepared)
    types = {}
    if prepared.spec.quantize == "int8":
        images = [{prepared.input_name: image.numpy()} for image in prepared.calibration()]
        model = quantize_int8(model, layers_to_quantize(prepared), images)
        types = count_types(model)
    elif prepared.spec.quantize is not None:
        types = quantize_weights(model, layers_to_quantize(prepared))
    require("onnx_ir", extra="onnx").save(model, path)
    inputs, outputs = prepared.describe()
    operations = len(model.graph)
    return FileSummary(
        path=path, inputs=inputs, outputs=outputs, operations=operations, types=types
    )


def convert(prepared: PreparedModel) -> Any:
    """Convert a prepared network to an `onnx_ir.Model` in float.

    Nodes of layers have the layers' names in `prepared.module.named_modules()`.
    """
    require("onnx", "onnxscript", extra="onnx")
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            prepared.module,
            (prepared.example,),
            input_names=[prepared.input_name],
            output_names=list(prepared.output_names),
            dynamic_shapes=(prepared.dynamic_axes,) if prepared.dynamic_axes else None,
            opset_version=OPSET,
            custom_translation_table=_translations(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _name_layers(model.graph, quantizable_layers(prepared.module))
    # Notes on the source code contain local paths.
    values = (value for node in model.graph for value in node.outputs)
    graph = model.graph
    for part in (*graph, *values, *graph.inputs, *graph.initializers.values(), graph, model):
        part.metadata_props.clear()
        part.doc_string = None
    model.ir_version = IR_VERSION
    model.producer_name = "mobilevit"
    model.metadata_props.update(prepared.metadata.to_strings())
    return model


class OnnxRunner:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        onnxruntime = require("onnxruntime", extra="onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3  # errors
        providers = ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions have no other base in common
            raise ExportError(
                f"{path} is damaged, or not an ONNX file that ONNX Runtime "
                f"{onnxruntime.__version__} supports: {error}"
            ) from error
        strings = self.session.get_modelmeta().custom_metadata_map
        self.metadata = FileMetadata.from_strings(strings, file=path)
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._input: str = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return tuple(self.session.run(None, {self._input: images}))
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime cannot run the file on {images.dtype} {list(images.shape)}: {error}"
            ) from error


BACKEND = Backend(
    name="onnx",
    suffix=".onnx",
    extra="onnx",
    write_prepared=write,
    open=OnnxRunner,
    supports_nms=True,
    quantize_modes=("int8", "int8-weights"),
    cross_layer_equalization=True,
    min_int8_channels=MIN_INT8_CHANNELS,
)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    op: Any = importlib.import_module("onnxscript").opset18

    def non_max_suppression(
        boxes: Any,
        scores: Any,
        max_per_class: int,
        iou_threshold: float,
        score_threshold: float,
    ) -> Any:
        return op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[max_per_class]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )

    return {torch.ops.mobilevit.suppress.default: non_max_suppression}


def _name_layers(graph: Any, layers: Mapping[str, nn.Module]) -> None:
    for node in graph:
        # The exporter notes the modules from the outermost on, then the operation.
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if node.op_type in LAYERS and len(scopes) > 1 and scopes[-2] in layers:
            node.name = scopes[-2]
