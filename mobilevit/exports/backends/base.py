"""The interface of a backend, and the facts about its format."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from PIL import Image

from mobilevit.checkpoints.folder import digest
from mobilevit.exports.float16 import halve
from mobilevit.exports.quantize import equalize_channels, layers_to_quantize, narrow_layers
from mobilevit.exports.rewrite import inference_graph
from mobilevit.exports.spec import (
    Dynamic,
    ExportError,
    ExportSpec,
    FileMetadata,
    Precision,
    file_preprocessing,
)
from mobilevit.exports.wrap import EndToEndModel, PreparedModel, RawModel
from mobilevit.models.fuse import is_fused
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task

CHOOSE_SIZE = "such as by --preprocessing.crop 320 --preprocessing.resize 320"


class Runner(Protocol):
    """An exported file, opened in its runtime."""

    metadata: FileMetadata
    runtime: str
    """Name and version, such as `onnxruntime 1.32.0`."""

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch.

        Args:
            images: pixels, red, green, blue, uint8 `[B, H, W, 3]`, of the file's size; of a raw
                file normalized float32 `[B, 3, H, W]`. B is 1 unless the file's batch is dynamic.

        Returns:
            `TaskExport.outputs`; of a raw file `TaskExport.raw_outputs`.

        Raises:
            ExportError: images of another shape or type.
        """


@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """A file that was written."""

    path: Path
    inputs: tuple[str, ...]
    """Such as `image: uint8 [1, 256, 256, 3]`."""
    outputs: tuple[str, ...]
    operations: int
    types: dict[str, int] = field(default_factory=dict)
    """Operations by the type that they compute in, such as `{"float32": 120, "int8": 60}`."""
    placement: str = ""
    """How much of the graph the runtime delegates."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A format: what it supports, and the functions that write and open its files."""

    name: str
    suffix: str
    extra: str
    """The extra of this library that installs the format's packages."""
    write_prepared: Callable[[PreparedModel, Path], FileSummary]
    """Write a prepared network to a path that is empty or does not exist; raises ExportError."""
    open: Callable[[Path, int], Runner]
    """Open a file, to run on this many threads; raises ExportError."""
    by_suffix: bool = True
    """Whether a file name's suffix selects the format; if not, `format` must be given."""
    is_folder: bool = False
    dynamic: tuple[Dynamic, ...] = ("batch", "size")
    quantize_modes: tuple[str, ...] = ()
    supports_nms: bool = False
    """Whether the runtime has an operation for non-maximum suppression."""
    nchw_float_input: bool = False
    """Whether files take pixels as float32 `[B, 3, H, W]`, not as uint8 `[B, H, W, 3]`."""
    native_fp16: bool = False
    """Whether the format converts a float32 graph to float16 itself."""
    fp16_quantized: bool = False
    """Whether what is not quantized can be float16."""
    cross_layer_equalization: bool = False
    """Whether channel ranges are equalized ahead of int8; see `mobilevit.exports.quantize`."""
    min_int8_channels: int = 0
    """The stem and inverted residuals with fewer input channels stay in float in int8, where that
    is faster; `float_layers` come on top."""
    runtime_tarball: Callable[[str | None], Any] | None = None
    """Provide the runtime that files bundle, from a local tarball if one is given."""
    check_output: Callable[[Path, ExportSpec], None] = lambda path, spec: None
    """Check ahead of all work that such a file can be written there; raises ExportError."""
    add_self_test: Callable[[Path, Network, Image.Image], None] = lambda path, model, image: None
    """Add an image and its expected prediction to a file that has been verified."""

    def prepare(self, model: Network, spec: ExportSpec) -> PreparedModel:
        """Prepare a network of `create_model` or `load`, which is unchanged, for this format.

        Raises:
            ExportError: the network or the format does not support this kind of file.
        """
        self.check(model, spec)
        preprocessing = file_preprocessing(model.config.preprocessing, spec.dynamic)
        graph = inference_graph(model)
        if spec.precision == "fp16" and not self.native_fp16:
            halve(graph)
        module: EndToEndModel | RawModel
        if spec.raw:
            module = RawModel(graph)
        else:
            task = get_task(model.config.task).export
            postprocess = task.postprocess(model, preprocessing.crop, self.supports_nms)
            nchw = self.nchw_float_input
            module = EndToEndModel(graph, preprocessing, postprocess, nchw_float_input=nchw)
        # No dynamic size of the example is 1 or occurs twice: `torch.export` would specialize.
        height, width = (96, 160) if spec.dynamic == "size" else (preprocessing.crop,) * 2
        floats = spec.raw or self.nchw_float_input
        sides = (model.backbone.in_channels, height, width) if floats else (height, width, 3)
        first = 2 if floats else 1
        prepared = PreparedModel(
            module=module.eval(),
            example=torch.zeros(
                2 if spec.dynamic == "batch" else 1,
                *sides,
                dtype=torch.float32 if floats else torch.uint8,
            ),
            metadata=FileMetadata(
                config=replace(model.config, preprocessing=preprocessing),
                weights=digest(model.state_dict()),
                **spec.format_fields(),
            ),
            spec=spec,
            dynamic_axes={
                None: {},
                "batch": {0: "batch"},
                "size": {first: "height", first + 1: "width"},
            }[spec.dynamic],
        )
        if spec.quantize is None:
            return prepared
        layers_to_quantize(prepared)  # validates float_layers ahead of any work
        if spec.quantize != "int8":
            return prepared
        narrow = narrow_layers(prepared.module, self.min_int8_channels)
        prepared = replace(prepared, spec=replace(spec, float_layers=spec.float_layers | narrow))
        return equalize_channels(prepared) if self.cross_layer_equalization else prepared

    def check(self, model: Network, spec: ExportSpec) -> None:
        """Raise ExportError if the network or the format does not support this kind of file."""
        if is_fused(model):
            raise ExportError("a fused network cannot be exported; export the one it was made from")
        if spec.precision not in get_args(Precision):
            raise ExportError(f"precision must be fp32 or fp16, not {spec.precision!r}")
        if model.fixed_size and spec.dynamic == "size":
            raise ExportError(
                f"{model.name} cannot be exported with dynamic size: {model.fixed_size}. Export "
                f"one file for each size: without dynamic, {CHOOSE_SIZE}"
            )
        if spec.dynamic is not None and spec.dynamic not in self.dynamic:
            raise ExportError(
                f"{self.name} files cannot have dynamic {spec.dynamic}: export one file for each "
                f"size, {CHOOSE_SIZE}, and run it for each image; ONNX files can be dynamic"
            )
        if spec.quantize is not None and spec.quantize not in self.quantize_modes:
            raise self.unknown_mode(spec.quantize)
        if spec.quantize is not None and spec.precision == "fp16" and not self.fp16_quantized:
            raise ExportError(
                f"{self.name} files cannot combine quantize with precision fp16: choose one of them"
            )

    def write(self, model: Network, spec: ExportSpec, path: Path) -> FileSummary:
        return self.write_prepared(self.prepare(model, spec), path)

    def unknown_mode(self, mode: str, *, also: tuple[str, ...] = ()) -> ExportError:
        modes = ", ".join((*self.quantize_modes, *also))
        supported = f"it must be one of {modes}" if modes else "they cannot be quantized"
        return ExportError(f"quantize {mode!r} is not available for {self.name} files: {supported}")
