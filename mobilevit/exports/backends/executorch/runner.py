"""ExecuTorch programs in ExecuTorch's runtime."""

from __future__ import annotations

import importlib
import importlib.metadata
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mobilevit.exports.spec import ExportError, FileMetadata
from mobilevit.exports.toolchain import capture_stderr, require

Delegate = Literal["xnnpack", "coreml"]
DELEGATES: dict[str, tuple[str, str]] = {
    "xnnpack": ("XNNPACK", "XnnpackBackend"),
    "coreml": ("Core ML", "CoreMLBackend"),
}
"""What a program can be lowered to -> its name, and its name in the runtime's registry."""


class ExecutorchRunner:
    """A program in ExecuTorch's runtime, on the CPU.

    The runtime has one thread pool for the process, which loaded programs hold on to. Two programs
    with different numbers of threads are therefore loaded again whenever they alternate.
    """

    def __init__(self, path: Path, threads: int) -> None:
        require("executorch.runtime", extra="executorch")
        self._path, self._content, self._threads = path, path.read_bytes(), threads
        self._bindings: Any = importlib.import_module(
            "executorch.extension.pybindings.portable_lib"
        )
        self._runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
        self._loaded: tuple[Any, Any] | None = None
        with self._explained():
            program = self._runtime.load_program(self._content)
            strings = {
                name: program.load_method(name).execute([])[0]
                for name in program.method_names & {"config", "format", "delegate"}
            }
        self.metadata = FileMetadata.from_strings(strings, file=path)
        name, registered = DELEGATES[strings["delegate"]]
        if not self._runtime.backend_registry.is_available(registered):
            raise ExportError(
                f"{path} is for {name}, which executorch does not have on this system"
            )
        with self._explained():
            self._max_shape = tuple(self._method().metadata.input_tensor_meta(0).sizes())
        self.runtime = f"executorch {importlib.metadata.version('executorch')} ({name})"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        # Checked here: the runtime's own error gives neither the file nor the shapes.
        raw, dynamic = self.metadata.raw, self.metadata.dynamic
        dtype = np.float32 if raw else np.uint8
        free = {None: (), "batch": (0,), "size": (2, 3) if raw else (1, 2)}[dynamic]
        ranges = [
            range(1, size + 1) if axis in free else range(size, size + 1)
            for axis, size in enumerate(self._max_shape)
        ]
        fits = images.dtype == dtype and images.ndim == len(ranges)
        if not fits or any(n not in span for n, span in zip(images.shape, ranges, strict=True)):
            spans = [str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in ranges]
            raise ExportError(
                f"{self._path} takes {np.dtype(dtype)} [{', '.join(spans)}], not {images.dtype} "
                f"{list(images.shape)}"
            )
        batch = torch.from_numpy(np.ascontiguousarray(images))
        return tuple(part.numpy() for part in self._method().execute([batch]))

    def _method(self) -> Any:
        """The network, loaded, with its own number of threads."""
        with capture_stderr():
            if self._bindings._threadpool_get_thread_count() != self._threads:
                for runner in _LOADED:
                    runner._loaded = None
                _LOADED.clear()
                self._bindings._unsafe_reset_threadpool(self._threads)
        if self._loaded is None:
            program = self._runtime.load_program(self._content)
            self._loaded = program, program.load_method("forward")
            _LOADED.add(self)
        return self._loaded[1]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add the runtime's message, which goes to standard error, to the exception."""
        with capture_stderr() as captured:
            try:
                yield
            except RuntimeError as error:
                raise ExportError(f"ExecuTorch cannot open {self._path}: {captured()}") from error


_LOADED: weakref.WeakSet[ExecutorchRunner] = weakref.WeakSet()
"""Runners that hold on to the thread pool."""
