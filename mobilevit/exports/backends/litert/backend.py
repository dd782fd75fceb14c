"""LiteRT (TensorFlow Lite) files, by torch.export and litert-torch: for Android and others."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit.exports.backends.litert.flatbuffer import Graph, read_facts, with_facts
from mobilevit.exports.backends.litert.quantize import among, in_int8, litert_config
from mobilevit.exports.backends.litert.rewrite import litert_form
from mobilevit.exports.prepare import Prepared, Written, need, overheard, quiet
from mobilevit.exports.sensitivity import layers_of, quantised_layers
from mobilevit.exports.spec import ExportError, FileFacts
from mobilevit.exports.wrap import OUTPUTS, RAW_OUTPUTS

SMALL = 1024
"""Weights of fewer values stay float32 in `int8-weights`: they are a small part of the file."""


def write(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as one LiteRT file.

    Raises:
        ExportError: such a file cannot be made.
        MissingExtraError: litert-torch or the runtime is not installed.
    """
    request = prepared.request
    if request.dynamic is not None:
        raise ExportError(
            f"a LiteRT file takes one image of one size: dynamic {request.dynamic} cannot be "
            "converted. Export one file for each size (preprocessing: crop and resize), and run it "
            "once for each image; ONNX files can be dynamic"
        )
    if request.raw and request.quantize is not None and request.quantize.kind == "int8":
        raise ExportError(
            "the converter would make a raw file's tensors 8 bits too: leave raw out, or keep the "
            "weights alone in 8 bits (quantize int8-weights)"
        )
    if request.precision == "fp16" and request.quantize is not None:
        raise ExportError("what is not quantised stays in float32: leave precision fp16 out")
    with _silent(), overheard():
        need("litert_torch", "ai_edge_litert.interpreter", extra="litert")
        graph = Graph(_converted(prepared))
    graph.name([prepared.input], prepared.outputs)
    graph.take_bytes()
    if request.quantize is not None and request.quantize.kind == "int8-weights":
        graph.quantize_weights(_kept(prepared), least=SMALL)
    elif request.precision == "fp16":
        graph.halve_weights()
    config = prepared.facts.config
    graph.model.description = f"{config.model}, {config.task}, by MobileViT".encode()
    path.write_bytes(with_facts(graph.packed(), prepared.facts.texts(), config.classes))
    types = graph.types()
    return Written(
        path=path,
        inputs=graph.described(graph.graph.inputs),
        outputs=graph.described(graph.graph.outputs),
        nodes=len(graph.graph.operators),
        types=types if len(types) > 1 else {},
        placement=_placement(path),
    )


def _converted(prepared: Prepared) -> bytes:
    """litert-torch's file of a prepared network."""
    litert_torch: Any = importlib.import_module("litert_torch")
    quantize, options = prepared.request.quantize, {}
    if quantize is None or quantize.kind == "int8-weights":
        module = litert_form(prepared.module)
    elif quantize.kind == "int8":
        layers = quantised_layers(prepared)
        module, options = in_int8(prepared, layers), {"quant_config": litert_config()}
    else:
        raise ExportError(
            f"LiteRT files cannot be quantised as {quantize.kind!r}; int8 and int8-weights can "
            "be done"
        )
    with torch.no_grad(), overheard() as heard:
        try:
            model = litert_torch.convert(
                Named(module, prepared.outputs),
                sample_kwargs={prepared.input: prepared.example},
                **options,
            )
            content: bytes = model.model_content()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            version = importlib.metadata.version("litert-torch")
            raise ExportError(
                f"litert-torch {version} cannot convert {prepared.facts.config.model}: {error} "
                f"{heard()}"
            ) from error
    return content


class Named(nn.Module):
    """A module whose outputs have names: those of a dict, as litert-torch wants it."""

    def __init__(self, module: nn.Module, outputs: tuple[str, ...]) -> None:
        """Take a module of one input, and what its outputs are called."""
        super().__init__()
        self.module, self.outputs = module, outputs
        self.training = False  # by itself: a graph refuses `eval`

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """Give the outputs by name."""
        said = self.module(*given.values())
        said = (said,) if isinstance(said, Tensor) else tuple(said)
        return dict(zip(self.outputs, said, strict=True))


def _kept(prepared: Prepared) -> set[bytes]:
    """Weights that are to stay float32, as bytes in LiteRT's order of axes."""
    quantised = quantised_layers(prepared)
    module = litert_form(prepared.module)
    kept = set()
    for name, layer in layers_of(module).items():
        if among(name, quantised):
            continue
        weight = layer.weight
        if isinstance(layer, nn.Conv2d):
            weight = weight.permute((1, 2, 3, 0) if layer.groups > 1 else (0, 2, 3, 1))
        kept.add(weight.contiguous().numpy().tobytes())
    return kept


class LitertRunner:
    """A LiteRT file in LiteRT's interpreter, on the CPU by XNNPACK."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file.

        Raises:
            ExportError: it is damaged, or not of this library.
        """
        self.facts = FileFacts.read(read_facts(path), file=path)
        version = importlib.metadata.version("ai-edge-litert")
        self.runtime = f"litert {version}"
        try:
            interpreter = _opened(path, threads)
            self._run = interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"{path} is damaged, or no file that LiteRT {version} runs: {error}"
            ) from error
        ((self._input, self._taken),) = self._run.get_input_details().items()
        self._outputs = (RAW_OUTPUTS if self.facts.raw else OUTPUTS)[self.facts.config.task]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one image; see `mobilevit.exports.backends.registry.Runner`.

        Raises:
            ExportError: the file does not take such images.
        """
        dtype, shape = np.dtype(self._taken["dtype"]), self._taken["shape"].tolist()
        # The interpreter would try to run the file at another size.
        if images.dtype != dtype or list(images.shape) != shape:
            raise ExportError(
                f"the file takes {self._input}: {dtype} {shape}, not {images.dtype} "
                f"{list(images.shape)}"
            )
        said = self._run(**{self._input: np.ascontiguousarray(images)})
        return tuple(said[name] for name in self._outputs)


def open_file(path: Path, threads: int) -> LitertRunner:
    """Open a LiteRT file.

    Raises:
        ExportError: it is damaged, or not of this library.
        MissingExtraError: ai-edge-litert is not installed.
    """
    need("ai_edge_litert.interpreter", extra="litert")
    return LitertRunner(path, threads)


def _opened(path: Path, threads: int) -> Any:
    """A file in the interpreter, ready to run."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    with overheard():
        interpreter = litert.Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def _placement(path: Path) -> str:
    """How the interpreter splits a file between XNNPACK and its own kernels."""
    interpreter = _opened(path, 1)
    # What a delegate has taken over stays in this list; the delegates are at its end.
    operators = interpreter._get_ops_details()
    delegates = [one for one in operators if one["op_name"] == "DELEGATE"]
    operators = operators[: len(operators) - len(delegates)]
    inside = {int(place) for one in delegates for place in one["outputs"]}
    makers = {int(place): one for one in operators for place in one["outputs"]}
    wanted = [int(one["index"]) for one in interpreter.get_output_details()]
    wanted += [int(place) for one in delegates for place in one["inputs"]]
    left: dict[int, str] = {}
    while wanted:
        place = wanted.pop()
        maker = makers.get(place)
        if maker is None or place in inside or maker["index"] in left:
            continue
        left[maker["index"]] = maker["op_name"]
        wanted += [int(other) for other in maker["inputs"]]
    parts = f"{len(delegates)} part" + ("s" if len(delegates) != 1 else "")
    text = f"XNNPACK runs {len(operators) - len(left)} of {len(operators)} operations, in {parts}"
    return f"{text}; left: {', '.join(sorted(set(left.values())))}" if left else text


SWITCHES = {"LITERT_TORCH_SHOW_PROGRESS": "n", "TF_CPP_MIN_LOG_LEVEL": "1"}
"""Of litert-torch and its converter: no report of each step, warnings and errors alone."""


@contextmanager
def _silent() -> Iterator[None]:
    """Keep to themselves what litert-torch and its parts say of their own insides."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
