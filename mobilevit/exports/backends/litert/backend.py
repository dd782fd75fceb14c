"""LiteRT (TensorFlow Lite) files, by torch.export and litert-torch, for Android and others."""

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.litert.flatbuffer import Graph, append_metadata, read_metadata
from mobilevit.exports.backends.litert.quantize import belongs_to, quantize
from mobilevit.exports.backends.litert.rewrite import litert_graph
from mobilevit.exports.quantize import layers_to_quantize, quantizable_layers
from mobilevit.exports.spec import ExportError, FileMetadata
from mobilevit.exports.toolchain import capture_stderr, quiet, require
from mobilevit.exports.wrap import PreparedModel
from mobilevit.tasks import get_task

MIN_WEIGHTS = 1024
"""Layers with fewer weights stay in float32 in `int8-weights`: they matter little to the size."""


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as one LiteRT file."""
    spec = prepared.spec
    mode = spec.quantize or spec.precision
    with _silent(), capture_stderr():
        require("litert_torch", "ai_edge_litert.interpreter", "ai_edge_quantizer", extra="litert")
        graph = Graph(_convert(prepared))
    graph.set_names([prepared.input_name], prepared.output_names)
    graph.dequantize_input()
    if mode != "fp32":
        float_weights = _float_weights(prepared) if spec.quantize else set()
        min_size = MIN_WEIGHTS if mode == "int8-weights" else 0
        images = prepared.calibration() if mode == "int8" else []
        samples = [{prepared.input_name: image.numpy()} for image in images]
        kept = graph.layer_outputs(float_weights, min_size)
        graph = Graph(quantize(graph.packed(), mode, kept, samples))
    config = prepared.metadata.config
    graph.model.description = f"{config.model}, {config.task}, by MobileViT".encode()
    strings = prepared.metadata.to_strings()
    path.write_bytes(append_metadata(graph.packed(), strings, config.classes))
    types = graph.count_types()
    return FileSummary(
        path=path,
        inputs=graph.describe(graph.graph.inputs),
        outputs=graph.describe(graph.graph.outputs),
        operations=len(graph.graph.operators),
        types=types if len(types) > 1 else {},
        placement=_placement(path),
    )


def _convert(prepared: PreparedModel) -> bytes:
    litert_torch: Any = importlib.import_module("litert_torch")
    module = litert_graph(prepared.module)
    with torch.no_grad(), capture_stderr() as captured:
        try:
            model = litert_torch.convert(
                NamedOutputs(module, prepared.output_names),
                sample_kwargs={prepared.input_name: prepared.example},
            )
            content: bytes = model.model_content()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            version = importlib.metadata.version("litert-torch")
            raise ExportError(
                f"litert-torch {version} cannot convert {prepared.metadata.config.model}: {error} "
                f"{captured()}"
            ) from error
    return content


class NamedOutputs(nn.Module):
    """A module whose outputs are a dict, from which litert-torch takes their names."""

    def __init__(self, module: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs
        self.training = False  # `eval()` would reach the module, and a torch.export graph has none

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.module(*inputs.values())
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        return dict(zip(self.outputs, outputs, strict=True))


def _float_weights(prepared: PreparedModel) -> set[bytes]:
    """Weights of `float_layers` as bytes in LiteRT's order of axes, since it has no layer names."""
    quantized = layers_to_quantize(prepared)
    weights = set()
    for name, layer in quantizable_layers(litert_graph(prepared.module)).items():
        if belongs_to(name, quantized):
            continue
        weight = layer.weight
        if isinstance(layer, nn.Conv2d):
            weight = weight.permute((1, 2, 3, 0) if layer.groups > 1 else (0, 2, 3, 1))
        weights.add(weight.contiguous().numpy().tobytes())
    return weights


class LitertRunner:
    """A LiteRT file in LiteRT's interpreter, on the CPU by XNNPACK."""

    def __init__(self, path: Path, threads: int) -> None:
        require("ai_edge_litert.interpreter", extra="litert")
        self.metadata = FileMetadata.from_strings(read_metadata(path), file=path)
        version = importlib.metadata.version("ai-edge-litert")
        self.runtime = f"litert {version}"
        try:
            self._run = _interpreter(path, threads).get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"{path} is damaged, or not a file that LiteRT {version} supports: {error}"
            ) from error
        ((self._input, details),) = self._run.get_input_details().items()
        self._dtype, self._shape = np.dtype(details["dtype"]), details["shape"].tolist()
        task = get_task(self.metadata.config.task).export
        self._outputs = task.raw_outputs if self.metadata.raw else task.outputs

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        # The interpreter would try to run the file at another size.
        if images.dtype != self._dtype or list(images.shape) != self._shape:
            raise ExportError(
                f"the file takes {self._input}: {self._dtype} {self._shape}, not {images.dtype} "
                f"{list(images.shape)}"
            )
        outputs = self._run(**{self._input: np.ascontiguousarray(images)})
        return tuple(outputs[name] for name in self._outputs)


def _interpreter(path: Path, threads: int) -> Any:
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    with capture_stderr():
        interpreter = litert.Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def _placement(path: Path) -> str:
    """How the interpreter divides a file between XNNPACK and its own kernels."""
    interpreter = _interpreter(path, 1)
    # Delegated operations stay in this list; the delegates are at its end.
    operators = interpreter._get_ops_details()
    delegates = [one for one in operators if one["op_name"] == "DELEGATE"]
    operators = operators[: len(operators) - len(delegates)]
    delegated = {int(tensor) for one in delegates for tensor in one["outputs"]}
    producers = {int(tensor): one for one in operators for tensor in one["outputs"]}
    # What is computed outside the delegates is what outputs and delegates still need.
    pending = [int(one["index"]) for one in interpreter.get_output_details()]
    pending += [int(tensor) for one in delegates for tensor in one["inputs"]]
    left: dict[int, str] = {}
    while pending:
        tensor = pending.pop()
        producer = producers.get(tensor)
        if producer is None or tensor in delegated or producer["index"] in left:
            continue
        left[producer["index"]] = producer["op_name"]
        pending += [int(other) for other in producer["inputs"]]
    parts = f"{len(delegates)} part" + ("s" if len(delegates) != 1 else "")
    text = f"XNNPACK runs {len(operators) - len(left)} of {len(operators)} operations, in {parts}"
    return f"{text}; left: {', '.join(sorted(set(left.values())))}" if left else text


SWITCHES = {"LITERT_TORCH_SHOW_PROGRESS": "n", "TF_CPP_MIN_LOG_LEVEL": "1"}
"""Environment variables that silence litert-torch and its converter."""


@contextmanager
def _silent() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)
    try:
        with quiet():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


BACKEND = Backend(
    name="litert",
    suffix=".tflite",
    extra="litert",
    write_prepared=write,
    open=LitertRunner,
    dynamic=(),
    quantize_modes=("int8", "int8-weights"),
    native_fp16=True,
    cross_layer_equalization=True,
)
