"""ExecuTorch programs in ExecuTorch's runtime."""

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
        runtime = require("executorch.runtime", extra="executorch")
        self._path, self._content, self._threads = path, path.read_bytes(), threads
        self._runtime = runtime.Runtime.get()
        self._loaded: tuple[Any, Any] | None = None
        with self._explained("open the file"):
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
        with self._explained("open the file"):
            self._method()
        self.runtime = f"executorch {importlib.metadata.version('executorch')} ({name})"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = torch.from_numpy(np.ascontiguousarray(images))
        with self._explained(f"run the file on {images.dtype} {list(images.shape)}"):
            return tuple(part.numpy() for part in self._method().execute([batch]))

    def _method(self) -> Any:
        """The network, loaded, with its own number of threads."""
        pool: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        if pool._threadpool_get_thread_count() != self._threads:
            for runner in _LOADED:
                runner._loaded = None
            _LOADED.clear()
            pool._unsafe_reset_threadpool(self._threads)
        if self._loaded is None:
            program = self._runtime.load_program(self._content)
            self._loaded = program, program.load_method("forward")
            _LOADED.add(self)
        return self._loaded[1]

    @contextmanager
    def _explained(self, task: str) -> Iterator[None]:
        """Add the runtime's message, which goes to standard error, to the exception."""
        with capture_stderr() as captured:
            try:
                yield
            except RuntimeError as error:
                raise ExportError(
                    f"ExecuTorch cannot {task}, {self._path}: {captured()}"
                ) from error


_LOADED: weakref.WeakSet[ExecutorchRunner] = weakref.WeakSet()
"""Runners that hold on to the thread pool."""
