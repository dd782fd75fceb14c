"""ONNX files, by torch.export: for ONNX Runtime on phones, servers and in browsers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevit.exports.facts import Dynamic, ExportError, FileFacts
from mobilevit.exports.prepare import Prepared, Written, need, quiet

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

    Raises:
        ExportError: such a file can not be made.
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
    _tidy(program.model, prepared.request.dynamic)
    program.model.ir_version = IR_VERSION
    program.model.producer_name = "mobilevit"
    program.model.metadata_props.update(prepared.facts.texts())
    program.save(str(path), external_data=False)
    graph = program.model.graph
    return Written(
        path=path,
        inputs=tuple(map(_described, graph.inputs)),
        outputs=tuple(map(_described, graph.outputs)),
        nodes=len(graph),
    )


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
        """Run one batch; see `mobilevit.exports.formats.Runner`.

        Raises:
            ExportError: the file does not take such images.
        """
        try:
            return tuple(self.session.run(None, {self._input: images}))
        except self._errors as error:
            raise ExportError(
                f"ONNX Runtime can not run the file on {images.dtype} {list(images.shape)}: {error}"
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
    """The operations that `mobilevit.exports.whole` defines, in ONNX's."""
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
    shape = ", ".join(str(side) for side in value.shape)
    kind = {"float": "float32"}.get(str(value.dtype).lower(), str(value.dtype).lower())
    return f"{value.name}: {kind} [{shape}]"
