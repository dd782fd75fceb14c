"""From a network to the graph that a file holds: what all formats have in common."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilevit.checkpoints.folder import digest
from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.rewrite import export_form
from mobilevit.exports.spec import Dynamic, ExportError, FileFacts, Precision
from mobilevit.exports.wrap import IMAGE, OUTPUTS, RAW_OUTPUTS, TENSOR, Raw, Whole, whole
from mobilevit.models.config import Preprocessing
from mobilevit.models.registry import Network
from mobilevit.models.ssdlite import SSDLite


class MissingExtraError(ExportError, ImportError):
    """A format needs packages that are not installed."""


def need(*packages: str, extra: str) -> None:
    """See that a format's packages are there.

    Raises:
        MissingExtraError: they are not; the message says how to install them.
    """
    for package in packages:
        try:
            with quiet():
                importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"{extra} files need {package}, which is not installed ({error}): "
                f"pip install 'mobilevit[{extra}]'"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Fewer bits for weights, or for weights and activations."""

    kind: str
    """`int8`: weights for each channel and activations, static; other kinds belong to a format."""
    photos: tuple[Image.Image, ...] = ()
    """RGB images that ranges of activations are measured on; framed as the file takes them."""
    keep: frozenset[str] = frozenset()
    """Layers that stay in float, by their names in `Prepared.module.named_modules()`, such as
    `form.backbone.stages.2.1.layers.0.attention.qkv`."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What kind of file is wanted."""

    dynamic: Dynamic | None = None
    """`batch` for any number of images, `size` for images of any size, one at a time."""
    raw: bool = False
    """A prepared tensor in and logits out, in place of a photo and an answer."""
    precision: Precision = "fp32"
    """`fp16` computes in half precision, half the size; in and outputs stay the same."""
    quantize: Quantization | None = None

    def __post_init__(self) -> None:
        """Refuse unknown words.

        Raises:
            ExportError: such an option.
        """
        if self.dynamic not in (None, "batch", "size") or self.precision not in ("fp32", "fp16"):
            raise ExportError(
                "dynamic is batch or size (or nothing), precision is fp32 or fp16, not "
                f"{self.dynamic!r} and {self.precision!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file, and what is in it."""

    path: Path
    inputs: tuple[str, ...]
    """`image: uint8 [1, 256, 256, 3]`."""
    outputs: tuple[str, ...]
    nodes: int
    """Operations in the graph, as they were written."""
    types: dict[str, int] = field(default_factory=dict)
    """Operations by what they compute in, such as `{"float32": 120, "int8": 60}`."""
    placement: str = ""
    """Where a runtime splits the graph: which share it delegated, and what fell back."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network ready to be written: a module, an example of its input, names and facts."""

    module: nn.Module
    """In evaluation mode; a `Whole` or `Raw`, or any network that takes what a raw file takes."""
    example: Tensor
    facts: FileFacts
    request: Request
    shapes: tuple[dict[int, Any]] | None
    """Sizes that vary, as `torch.export` takes them; None where none does."""

    @property
    def input(self) -> str:
        """Name of the input."""
        return TENSOR if self.request.raw else IMAGE

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        names = RAW_OUTPUTS if self.request.raw else OUTPUTS
        return names[self.facts.config.task]

    def program(self) -> ExportedProgram:
        """The graph by `torch.export`, still in torch's own operations."""
        with torch.no_grad(), quiet():
            return torch.export.export(self.module, (self.example,), dynamic_shapes=self.shapes)

    def given(self, frames: Sequence[Image.Image]) -> Tensor:
        """Images of the right size as the module takes them: uint8 pixels, or prepared floats."""
        if self.request.raw:
            return torch.stack(
                [image_to_tensor(f, self.facts.config.preprocessing) for f in frames]
            )
        pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
        planar = not self.request.raw and getattr(self.module, "planar", False)
        return pixels.permute(0, 3, 1, 2).float() if planar else pixels

    def calibration(self) -> list[Tensor]:
        """The photos of `request.quantize` one by one, as the module takes them.

        Raises:
            ExportError: there are none.
        """
        quantize = self.request.quantize
        if quantize is None or not quantize.photos:
            raise ExportError("ranges of activations are measured on photos: give some")
        rule = self.facts.config.preprocessing
        return [self.given([frame_image(photo, rule)]) for photo in quantize.photos]


def file_rule(rule: Preprocessing, dynamic: Dynamic | None) -> Preprocessing:
    """The preprocessing that photos need ahead of a file.

    A file of one size takes squares: where weights take images in their own shape, those are
    squashed.
    """
    return (
        replace(rule, resize_mode="stretch")
        if rule.resize_mode == "shortest_edge" and dynamic != "size"
        else rule
    )


def prepare(
    model: Network,
    request: Request,
    *,
    plain: bool = False,
    planar: bool = False,
    halve: bool = True,
) -> Prepared:
    """Bring a network into the form that a file holds; the original is left as it was.

    Args:
        model: a network of `create_model` or `load`.
        request: what kind of file is wanted.
        plain: non-maximum suppression in plain operations, for runtimes that have none.
        planar: pixels as float32 `[B, 3, H, W]` in 0..255 in place of uint8 `[B, H, W, 3]`.
        halve: compute in float16 where that is asked for; not for formats that do so themselves.

    Raises:
        ExportError: no file can do that; the message says what to do in its place.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ExportError("a fused network cannot be exported; give the one it was made of")
    if model.fixed_size and request.dynamic == "size":
        raise ExportError(
            f"{model.name} cannot be exported with dynamic size: {model.fixed_size}. Export one "
            "file for each size (preprocessing: crop and resize)"
        )
    rule = file_rule(model.config.preprocessing, request.dynamic)
    form = export_form(model, vary=request.dynamic == "size")
    anchors = model.anchors(rule.crop, rule.crop) if isinstance(model, SSDLite) else None
    try:
        module: Whole | Raw = (
            Raw(form) if request.raw else whole(form, rule, anchors, plain=plain, planar=planar)
        )
    except ValueError as error:
        raise ExportError(str(error)) from error
    if halve and request.precision == "fp16":
        module.halve()
    facts = FileFacts(
        config=replace(model.config, preprocessing=rule),
        weights=digest(model.state_dict()),
        raw=request.raw,
        dynamic=request.dynamic,
        precision=request.precision,
        quantize=request.quantize.kind if request.quantize else None,
    )
    floats = request.raw or planar
    return Prepared(
        module=module.eval(),
        example=_example(model.backbone.in_channels, rule, request, floats=floats),
        facts=facts,
        request=request,
        shapes=_dynamic_shapes(request.dynamic, first=2 if floats else 1),
    )


def _example(channels: int, rule: Preprocessing, request: Request, *, floats: bool) -> Tensor:
    """An input to follow through the graph.

    What is to vary is neither 1 nor the same twice in it, or the graph would take it for a rule.
    """
    batch = 2 if request.dynamic == "batch" else 1
    height, width = (96, 160) if request.dynamic == "size" else (rule.crop, rule.crop)
    if floats:
        return torch.zeros(batch, channels, height, width)
    return torch.zeros(batch, height, width, 3, dtype=torch.uint8)


def _dynamic_shapes(dynamic: Dynamic | None, *, first: int) -> tuple[dict[int, Any]] | None:
    """`first`: the axis of height."""
    if dynamic is None:
        return None
    if dynamic == "batch":
        return ({0: torch.export.Dim("batch", min=1)},)
    return ({first: torch.export.Dim.DYNAMIC, first + 1: torch.export.Dim.DYNAMIC},)


NOISY = (
    "torch.onnx",
    "torch.utils._pytree",
    "torch.utils.cpp_extension",
    "onnxscript",
    "onnx_ir",
    "coremltools",
    "torchao",
    "executorch",
    "nncf",
)
"""Libraries that log their own insides while they work."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what exporters say of their own insides."""
    loggers = [logging.getLogger(name) for name in NOISY]
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


@contextmanager
def overheard() -> Iterator[Callable[[], str]]:
    """Keep off the screen what a library's other code than Python writes to the error stream.

    Yields:
        What gives that text, as one line.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(file.fileno()), "w") as text:
        os.dup2(file.fileno(), 2)

        def heard() -> str:
            text.flush()
            file.seek(0)
            return " ".join(file.read().decode(errors="replace").split())

        try:
            with redirect_stderr(text):  # some write to Python's stream, and not to the system's
                yield heard
        finally:
            os.dup2(screen, 2)
            os.close(screen)
