"""A process of `mobilevit benchmark`: it writes one file, or runs one network in one runtime.

    python -m mobilevit.commands.benchmark.worker TASK.json

Each network runs in its own process, so that runtimes do not share memory or threads, and a crash
ends that process alone. Replies are JSON objects, one a line, on standard output; other output of
libraries goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image

from mobilevit.checkpoints.create import load
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.spec import ExportSpec, Quantization
from mobilevit.models.fuse import fuse

RUNTIME_MODULES = {
    "onnx": "onnxruntime",
    "coreml": "coremltools",
    "litert": "ai_edge_litert.interpreter",
    "executorch": "executorch.runtime",
    "openvino": "openvino",
}
"""Format -> the module of its runtime, imported before a network's memory is counted."""

Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def main(arguments: list[str]) -> None:
    """Do one task; see `write_file` and `Session`."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.excepthook = _reply_with_error(replies)
    task: dict[str, Any] = json.loads(Path(arguments[0]).read_text())
    torch.set_num_threads(task["threads"])
    if task["do"] == "write":
        _reply(replies, write_file(task))
        return
    session = Session(task)
    _reply(replies, session.opened())
    for line in sys.stdin:
        word, *numbers = line.split()
        _reply(replies, session.run(int(numbers[0])) if word == "run" else session.finish())


def _reply(replies: TextIO, values: dict[str, Any]) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


def _reply_with_error(
    replies: TextIO,
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """A hook that reports the error that ends the process, and prints it as well."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        for_users = isinstance(error, ValueError | OSError)
        message = " ".join(lines) if for_users else f"{kind.__name__}: {' '.join(lines[:1])}"
        _reply(replies, {"failed": message})

    return hook


def write_file(task: dict[str, Any]) -> dict[str, Any]:
    """Export the network of a model folder: prepared tensors in, logits out, one batch size."""
    backend = BACKENDS[task["format"]]
    model = load(task["model"])
    quantize = None
    if task["quantize"] is not None:
        images = tuple(Image.open(path).convert("RGB") for path in task["images"])
        quantize = Quantization(mode=task["quantize"], images=images)
    begun = time.perf_counter()
    prepared = backend.prepare(
        model, ExportSpec(raw=True, precision=task["precision"], quantize=quantize)
    )
    size = model.config.preprocessing.crop
    example = torch.zeros(task["batch"], 3, size, size)
    written = backend.write_prepared(replace(prepared, example=example), Path(task["out"]))
    return {
        "writing_s": time.perf_counter() - begun,
        "operations": written.operations,
        "types": written.types,
        "placement": written.placement,
    }


class Session:
    """A network open in a runtime."""

    def __init__(self, task: dict[str, Any]) -> None:
        """Open it, and run it once."""
        self.output = Path(task["output"])
        self.images = np.load(task["input"])
        self.batch: int = task["batch"]
        self.example = self.images[: self.batch]
        runtime: str = task["runtime"]
        if runtime in RUNTIME_MODULES:
            importlib.import_module(RUNTIME_MODULES[runtime])
        gc.collect()
        self.memory = Memory()
        begun = time.perf_counter()
        if runtime in BACKENDS:
            opened = open_exported(task["file"], BACKENDS[runtime], threads=task["threads"])
            self.call: Run = opened
            self.version = opened.runtime
        else:
            compile_it = runtime == "torch-compile"
            self.call = _torch_run(task["model"], task["precision"], compile_it=compile_it)
            self.version = f"torch {torch.__version__}"
        gc.collect()
        self.opening_s = time.perf_counter() - begun
        begun = time.perf_counter()
        self.call(self.example)
        self.first_run_s = time.perf_counter() - begun
        self.opening_bytes = self.memory.peak()
        self.peak_was_reset = self.memory.reset_peak()

    def opened(self) -> dict[str, Any]:
        """The runtime's version, and what opening took."""
        return {
            "version": self.version,
            "startup": {"opening_ms": 1e3 * self.opening_s, "first_run_ms": 1e3 * self.first_run_s},
            "opening_bytes": self.opening_bytes,
        }

    def run(self, count: int) -> dict[str, Any]:
        """Time `count` runs, after one that does not count: the caches are another process's."""
        wall, cpu = [], []
        gc.disable()
        self.call(self.example)
        for _ in range(count):
            processor, begun = time.process_time(), time.perf_counter()
            self.call(self.example)
            wall.append(1e3 * (time.perf_counter() - begun))
            cpu.append(1e3 * (time.process_time() - processor))
        gc.enable()
        return {"wall_ms": wall, "cpu_ms": cpu}

    def finish(self) -> dict[str, Any]:
        """Write the outputs for all images to a file; returns how much memory the runs took."""
        running_bytes = self.memory.peak() if self.peak_was_reset else None
        starts = range(0, len(self.images), self.batch)
        outputs = [self.call(self.images[start : start + self.batch]) for start in starts]
        np.savez(self.output, *(np.concatenate(parts) for parts in zip(*outputs, strict=True)))
        return {"running_bytes": running_bytes}


def _torch_run(folder: str, precision: str, *, compile_it: bool) -> Run:
    """A model folder in PyTorch: fused and channels-last."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network: Any = fuse(load(folder)).to(dtype).requires_grad_(False)
    if compile_it:
        network = torch.compile(network)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(images).to(dtype))
        parts = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return tuple(part.float().numpy() for part in parts)

    return run


class Memory:
    """How much this process has grown at most since this object was made."""

    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        self.reset_peak()
        # On Linux not by getrusage, which also counts what the parent had when it forked.
        self.before = self._line("VmRSS") if self.status.exists() else _max_rss()

    def reset_peak(self) -> bool:
        """Count the peak from here on; False if the system does not support that."""
        if not os.access(self.reset, os.W_OK):
            return False
        self.reset.write_text("5")
        return True

    def peak(self) -> int | None:
        """Bytes; None if the system does not report it."""
        now = self._line("VmHWM") if self.status.exists() else _max_rss()
        return None if now is None or self.before is None else max(0, now - self.before)

    def _line(self, name: str) -> int:
        lines = dict(line.split(":", 1) for line in self.status.read_text().splitlines())
        return 1024 * int(lines[name].split()[0])


def _max_rss() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1:])
