"""The options of `mobilevit export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from PIL import Image

from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import BACKENDS, FormatName, backend_of, suffixes
from mobilevit.exports.spec import Dynamic, ExportError, ExportSpec, Precision
from mobilevit.utils.options import Count, Interval, Options, Share


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """The file to write, and how to check it.

    >>> ExportOptions(out="leaves.onnx").backend.name
    'onnx'
    """

    out: str
    """The file (coreml, openvino, web: a folder); its suffix selects the format."""
    format: FormatName | None = None
    """By default from the suffix of `out`: .onnx, .mlpackage (coreml), .tflite (litert), .pte
    (executorch) or .openvino. The folder of a web page can have any name; the first of the images
    is in it."""
    dynamic: Dynamic | None = None
    """`batch` for any number of images at once, `size` for images of any size."""
    raw: bool = False
    """The network only: a normalized float tensor in, logits out."""
    precision: Precision = "fp32"
    """`fp16` for half the size."""
    quantize: str | None = None
    """`int8` for 8-bit weights and activations, calibrated on the images; `auto` for the same with
    as few layers in float as preserve the accuracy on `data`; other modes belong to a format."""
    data: DataOptions | None = None
    """Labelled images, as for `evaluate`, that the model and the file are evaluated on."""
    limit: Count | None = None
    """The largest number of these, evenly spaced; by default 500."""
    max_drop: Annotated[float, Interval(0, 100)] | None = None
    """Points of accuracy (top-1, AP or mean IoU, times 100) that quantization may cost on `data`;
    by default 1, as from 90 % to 89 %."""
    least_agreement: Share | None = None
    """Share of predictions of a quantized file that must be PyTorch's; by default 0.9, or any with
    `data`."""
    max_mean_difference: Share | None = None
    """Mean difference in probability from PyTorch's that a quantized file can have, over the images
    that it is not calibrated on; by default 0.1, or any with `data`."""
    images: Sequence[str] | None = None
    """Files, folders, patterns or URLs of images for comparison and calibration; by default images
    of `data` (for calibration, of its training part), or two that scikit-learn provides."""
    classes: str | None = None
    """Class names in the order of the logits, where the model has none: separated by commas, or a
    text file with one a line."""
    preprocessing: dict[str, Any] | None = None
    """Fields of the model's preprocessing to override, such as crop and resize for another image
    size."""
    runtime_tarball: str | None = None
    """Web, once, where npm is not installed: ONNX Runtime Web as `npm pack` writes it elsewhere;
    without it the error names the version."""

    def __post_init__(self) -> None:
        super().__post_init__()
        backend, modes = self.backend, self.backend.quantize_modes
        auto = ("auto",) if "int8" in modes else ()
        if self.quantize is not None and self.quantize not in (*modes, *auto):
            raise backend.unknown_mode(self.quantize, also=auto)
        if self.data is None:
            if self.quantize == "auto":
                raise ExportError(
                    "quantize auto searches for the smallest file that stays accurate: give "
                    "labelled images by data.root"
                )
            for option in ("limit", "max_drop"):
                if getattr(self, option) is not None:
                    raise ExportError(f"{option} needs labelled images: give them by data.root")
        if self.quantize is None:
            for option in ("max_drop", "least_agreement", "max_mean_difference"):
                if getattr(self, option) is not None:
                    raise ExportError(f"{option} is for quantized files: give quantize too")
        if self.runtime_tarball is not None and backend.runtime_tarball is None:
            raise ExportError(f"runtime_tarball is not an option of {backend.name} files")

    @cached_property
    def backend(self) -> Backend:
        """The format, by `format` or the suffix of `out`."""
        backend = backend_of(self.out)
        if self.format is not None and not BACKENDS[self.format].by_suffix:
            backend = BACKENDS[self.format]
        if backend is None or self.format not in (None, backend.name):
            raise ExportError(
                f"out is {self.out!r}, format {self.format}: the suffix must be one of "
                f"{suffixes()}; or give --format web"
            )
        return backend

    @property
    def calibrates(self) -> bool:
        """Whether activation ranges are measured; other modes quantize the weights only."""
        return self.quantize in ("int8", "auto")

    def spec(self, calibration: Sequence[Image.Image]) -> ExportSpec:
        return ExportSpec(
            dynamic=self.dynamic,
            raw=self.raw,
            precision=self.precision,
            quantize="int8" if self.quantize == "auto" else self.quantize,
            calibration=tuple(calibration),
        )
