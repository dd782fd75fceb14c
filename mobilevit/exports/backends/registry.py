"""The formats by name. A new one needs a module in this folder and its name in `FormatName`."""

import importlib
from pathlib import Path
from typing import Literal, get_args

from mobilevit.exports.backends.base import Backend, Runner
from mobilevit.exports.spec import ExportError

FormatName = Literal["onnx", "coreml", "litert", "executorch", "openvino", "web"]

BACKENDS: dict[str, Backend] = {
    name: importlib.import_module(f"mobilevit.exports.backends.{name}").BACKEND
    for name in get_args(FormatName)
}


def backend_of(path: str | Path) -> Backend | None:
    """The format of a file by its suffix; None if that selects no format.

    >>> backend_of("leaves.tflite").name
    'litert'
    """
    suffix = Path(path).suffix
    return next((one for one in BACKENDS.values() if one.by_suffix and suffix == one.suffix), None)


def suffixes() -> str:
    """The suffixes that select a format, for messages."""
    return ", ".join(f"{one.suffix} ({one.name})" for one in BACKENDS.values() if one.by_suffix)


def open_exported(path: str | Path, backend: Backend | None = None, *, threads: int = 1) -> Runner:
    """Open an exported file in its own runtime, on the CPU.

    Args:
        path: the file.
        backend: its format; by default that of its suffix.
        threads: compute threads.

    Raises:
        ExportError: there is no such file, or it was not written by `mobilevit export`.
        MissingExtraError: the runtime is not installed.
    """
    path = Path(path)
    backend = backend or backend_of(path)
    if backend is None:
        raise ExportError(f"{path} is not an exported file: those end in {suffixes()}")
    if not path.exists():
        raise ExportError(f"there is no file {path}")
    return backend.open(path, threads)
