"""The formats: what each is called, how its files end, and who writes and runs them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np

from mobilevit.exports.facts import ExportError, FileFacts
from mobilevit.exports.prepare import Request, Written
from mobilevit.models.variants import Network

FormatName = Literal["onnx", "coreml", "litert", "executorch", "openvino"]


class Runner(Protocol):
    """An exported file, opened in its runtime."""

    facts: FileFacts
    runtime: str
    """Name and version, such as `onnxruntime 1.32.0`."""

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch.

        Args:
            images: photos' pixels, red, green, blue, uint8 `[B, H, W, 3]`, of the file's size; of a
                raw file prepared float32 `[B, 3, H, W]`. B is 1 unless the file's batch is dynamic.

        Returns:
            The outputs in the order of `mobilevit.exports.whole.OUTPUTS` (raw: `RAW_OUTPUTS`).
        """


class FormatModule(Protocol):
    """What the module of a format holds."""

    write: Callable[[Network, Request, Path], Written]
    """Write a network to a path that does not exist yet; raises ExportError."""
    open_file: Callable[[Path, int], Runner]
    """Open a file on so many threads; raises ExportError."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file."""

    name: FormatName
    suffix: str
    folder: bool = False
    """Whether what is written is a folder of files."""
    quantizations: tuple[str, ...] = ()
    """Kinds of `Quantization` that it can do."""

    def module(self) -> FormatModule:
        """The module that writes and runs it."""
        return cast(FormatModule, importlib.import_module(f"mobilevit.exports.{self.name}"))


FORMATS = {
    one.name: one
    for one in (
        Format(name="onnx", suffix=".onnx", quantizations=("int8",)),
        Format(name="coreml", suffix=".mlpackage", folder=True),
        Format(name="litert", suffix=".tflite"),
        Format(name="executorch", suffix=".pte"),
        Format(name="openvino", suffix=".openvino", folder=True),
    )
}


def format_of(path: str | Path) -> Format | None:
    """The format of a file by how its name ends; None where it is none of them."""
    return next((one for one in FORMATS.values() if str(path).rstrip("/").endswith(one.suffix)), None)


def open_exported(path: str | Path, *, threads: int = 1) -> Runner:
    """Open an exported file in its own runtime, on the CPU.

    Raises:
        ExportError: there is no such file, or it is none of `mobilevit export`.
        MissingExtraError: the runtime is not installed.
    """
    path = Path(path)
    found = format_of(path)
    if found is None:
        endings = ", ".join(one.suffix for one in FORMATS.values())
        raise ExportError(f"{path} is no exported file: those end in {endings}")
    if not path.exists():
        raise ExportError(f"there is no file {path}")
    return found.module().open_file(path, threads)
