"""ExecuTorch programs in ExecuTorch's own runtime."""

from __future__ import annotations

import importlib
import importlib.metadata
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevit.exports.prepare import overheard
from mobilevit.exports.spec import ExportError, FileFacts

BACKENDS = {"xnnpack": ("XNNPACK", "XnnpackBackend"), "coreml": ("Core ML", "CoreMLBackend")}
"""What a program can be lowered to: as people call it, and as the runtime does."""


class ExecutorchRunner:
    """A program in ExecuTorch's runtime, on the CPU.

    The runtime has one pool of threads for the whole process, which programs hold on to. So where
    two are to run on different numbers of threads, each is loaded anew when its turn comes.
    """

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file.

        Raises:
            ExportError: it is not of this library, or for what this machine does not have.
        """
        self._path, self._content, self._threads = path, path.read_bytes(), threads
        self._bindings: Any = importlib.import_module(
            "executorch.extension.pybindings.portable_lib"
        )
        self._runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
        self._loaded: tuple[Any, Any] | None = None
        with self._explained():
            program = self._runtime.load_program(self._content)
            texts = {
                name: program.load_method(name).execute([])[0]
                for name in program.method_names & {"config", "form", "backend"}
            }
        self.facts = FileFacts.read(texts, file=path)
        name, called = BACKENDS[texts["backend"]]
        if not self._runtime.backend_registry.is_available(called):
            raise ExportError(
                f"{path} is for {name}, which executorch does not have on this system"
            )
        with self._explained():
            self._most = tuple(self._method().metadata.input_tensor_meta(0).sizes())
        self.runtime = f"executorch {importlib.metadata.version('executorch')} ({name})"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch; see `mobilevit.exports.backends.registry.Runner`.

        Raises:
            ExportError: the images are of another shape or type than the file takes.
        """
        raw = self.facts.raw
        dtype = np.float32 if raw else np.uint8
        varying = {None: (), "batch": (0,), "size": (2, 3) if raw else (1, 2)}[self.facts.dynamic]
        takes = [
            range(1, most + 1) if axis in varying else range(most, most + 1)
            for axis, most in enumerate(self._most)
        ]
        fits = images.dtype == dtype and images.ndim == len(takes)
        if not fits or any(s not in span for s, span in zip(images.shape, takes, strict=True)):
            spans = [str(s[0]) if len(s) == 1 else f"{s[0]} to {s[-1]}" for s in takes]
            raise ExportError(
                f"{self._path} takes {np.dtype(dtype)} [{', '.join(spans)}], not {images.dtype} "
                f"{list(images.shape)}"
            )
        given = torch.from_numpy(np.ascontiguousarray(images))
        return tuple(part.numpy() for part in self._method().execute([given]))

    def _method(self) -> Any:
        """The network, loaded, on its own number of threads."""
        with overheard():
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
        """Make readable errors of the runtime's: it says why on the error stream alone."""
        with overheard() as heard:
            try:
                yield
            except RuntimeError as error:
                raise ExportError(f"ExecuTorch cannot open {self._path}: {heard()}") from error


_LOADED: weakref.WeakSet[ExecutorchRunner] = weakref.WeakSet()
"""Those that hold on to the pool of threads."""
