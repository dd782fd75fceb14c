"""ONNX files, by torch.export: for ONNX Runtime on phones, servers and in browsers."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mobilevit.checkpoints.config import ModelConfig
from mobilevit.checkpoints.files import digest, replacing
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.export.form import export_form
from mobilevit.export.whole import IMAGE, OUTPUTS, RAW_OUTPUTS, TENSOR, Raw, Whole, whole
from mobilevit.models.pspnet import PSPNet
from mobilevit.models.ssdlite import SSDLite
from mobilevit.models.variants import Network, Task

OPSET = 18
"""ONNX Runtime reads it from version 1.14 of 2023 on."""
IR_VERSION = 8
"""Of the file's own form: the one that came with this opset; an older runtime refuses a later."""

Dynamic = Literal["batch", "size"]
Precision = Literal["fp32", "fp16"]

LICENCE = (
    "MobileViT's library is under the MIT licence. The weights are under the licence of those who "
    "published or trained them; they come from: {source}"
)


class ExportError(ValueError):
    """A network can not be exported like this; the message says why and what can be done."""


class MissingExtraError(ExportError, ImportError):
    """A format needs packages that are not installed."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file, and what is in it."""

    path: Path
    inputs: tuple[str, ...]
    """`image: uint8 [1, 256, 256, 3]`."""
    outputs: tuple[str, ...]
    nodes: int
    """Operations in the graph, as the exporter wrote it."""
    seconds: float
    """That it took."""


def need(*packages: str, extra: str) -> None:
    """See that a format's packages are there.

    Raises:
        MissingExtraError: they are not; the message says how to install them.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"{extra} files need {package}, which is not installed ({error}): "
                f"pip install 'mobilevit[{extra}]'"
            ) from error


def file_rule(rule: Preprocessing, dynamic: Dynamic | None) -> Preprocessing:
    """The preprocessing that photos need ahead of a file.

    A file of one size takes squares: where weights take pictures in their own shape, those are
    squashed.
    """
    return replace(rule, fit="squash") if rule.fit == "short" and dynamic != "size" else rule


def check_request(model: Network, dynamic: Dynamic | None, precision: Precision) -> None:
    """Refuse what no file can do.

    Raises:
        ExportError: with what to do in its place.
    """
    if dynamic not in (None, "batch", "size") or precision not in ("fp32", "fp16"):
        raise ExportError(
            "dynamic is batch or size (or nothing), precision is fp32 or fp16, not "
            f"{dynamic!r} and {precision!r}"
        )
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ExportError("a fused network can not be exported; give the one it was made of")
    if dynamic != "size":
        return
    reason = {
        SSDLite: "a detector's anchors belong to one size of image",
        PSPNet: "PSPNet's regions are cut for one size of image",
    }.get(type(model))
    if reason:
        raise ExportError(
            f"{model.name} can not be exported with dynamic size: {reason}. Export one file for "
            "each size (preprocessing: crop and resize)"
        )


def metadata(
    model: Network,
    *,
    rule: Preprocessing,
    raw: bool,
    dynamic: Dynamic | None,
    precision: Precision,
) -> dict[str, str]:
    """What a file says of itself: texts, those with structure in JSON."""
    config: ModelConfig = model.config
    form = {"raw": raw, "dynamic": dynamic, "precision": precision}
    return {
        "model": config.model,
        "task": config.task,
        "options": json.dumps(dict(config.options)),
        "classes": json.dumps(config.classes, ensure_ascii=False),
        "num_classes": str(config.num_classes),
        "preprocessing": json.dumps(asdict(rule)),
        "form": json.dumps(form),
        "source": config.source,
        "weights_sha256": digest(model.state_dict()),
        "licence": LICENCE.format(source=config.source),
        "mobilevit_version": importlib.metadata.version("mobilevit"),
    }


def assemble(
    model: Network, *, rule: Preprocessing, raw: bool, vary: bool, precision: Precision
) -> Whole | Raw:
    """The graph that a file holds, as a module.

    Raises:
        ExportError: the network takes no photo.
    """
    form = export_form(model, vary=vary)
    anchors = model.anchors(rule.crop, rule.crop) if isinstance(model, SSDLite) else None
    try:
        module: Whole | Raw = Raw(form) if raw else whole(form, rule, anchors)
    except ValueError as error:
        raise ExportError(str(error)) from error
    if precision == "fp16":
        module.halve()
    return module.eval()


def export_onnx(
    model: Network,
    path: str | Path,
    *,
    dynamic: Dynamic | None = None,
    raw: bool = False,
    precision: Precision = "fp32",
) -> Written:
    """Write a network as one ONNX file of opset 18.

    Args:
        model: a network of `create_model` or `load`.
        path: the file; replaced in one step.
        dynamic: `batch` for any number of images, `size` for images of any size, one at a time.
        raw: a prepared tensor in and logits out, in place of a photo and an answer.
        precision: `fp16` computes in half precision, half the size; in and outputs stay the same.

    Raises:
        ExportError: such a file can not be made.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    need("onnx", "onnxscript", extra="onnx")
    check_request(model, dynamic, precision)
    began = time.perf_counter()
    path = Path(path)
    task: Task = model.config.task
    rule = file_rule(model.config.preprocessing, dynamic)
    module = assemble(model, rule=rule, raw=raw, vary=dynamic == "size", precision=precision)
    example = _example(model, rule, raw=raw, dynamic=dynamic)
    names = [TENSOR if raw else IMAGE], list((RAW_OUTPUTS if raw else OUTPUTS)[task])
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=_dynamic_shapes(dynamic, raw=raw),
            opset_version=OPSET,
            custom_translation_table=_translations(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _tidy(program.model, dynamic)
    program.model.ir_version = IR_VERSION
    program.model.producer_name = "mobilevit"
    program.model.metadata_props.update(
        metadata(model, rule=rule, raw=raw, dynamic=dynamic, precision=precision)
    )
    with replacing(path) as fresh:
        program.save(str(fresh), external_data=False)
    graph = program.model.graph
    return Written(
        path=path,
        inputs=tuple(map(_described, graph.inputs)),
        outputs=tuple(map(_described, graph.outputs)),
        nodes=len(graph),
        seconds=time.perf_counter() - began,
    )


def _example(
    model: Network, rule: Preprocessing, *, raw: bool, dynamic: Dynamic | None
) -> torch.Tensor:
    """An input to follow through the graph.

    What is to vary is neither 1 nor the same twice in it, or the graph would take it for a rule.
    """
    batch = 2 if dynamic == "batch" else 1
    height, width = (96, 160) if dynamic == "size" else (rule.crop, rule.crop)
    if raw:
        return torch.zeros(batch, model.backbone.in_channels, height, width)
    return torch.zeros(batch, height, width, 3, dtype=torch.uint8)


def _dynamic_shapes(dynamic: Dynamic | None, *, raw: bool) -> tuple[dict[int, Any]] | None:
    if dynamic is None:
        return None
    if dynamic == "batch":
        return ({0: torch.export.Dim("batch", min=1)},)
    first = 2 if raw else 1
    return ({first: torch.export.Dim.DYNAMIC, first + 1: torch.export.Dim.DYNAMIC},)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operations that `mobilevit.export.whole` defines, in ONNX's."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch's exporter says of its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
