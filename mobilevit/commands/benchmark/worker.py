"""A process of `mobilevit benchmark`: it writes one file, or runs one network in one runtime.

    python -m mobilevit.commands.benchmark.worker TASK.json

Each network runs in a process of its own, so that no runtime's memory or threads are another's, and
whatever one does not survive ends that process alone. What the process has to say it writes as one
JSON object a line to its standard output; what libraries print there goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image

from mobilevit.commands.benchmark.models import Subject
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.spec import Quantization

PACKAGES = {
    "onnx": "onnxruntime",
    "coreml": "coremltools",
    "litert": "ai_edge_litert.interpreter",
    "executorch": "executorch.runtime",
    "openvino": "openvino",
}
"""Backend -> its runtime, which is loaded ahead of what is counted as a network's memory."""

Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def main(arguments: list[str]) -> None:
    """Do one task; see `write` and `Running`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.excepthook = _telling(answers)
    task: dict[str, Any] = json.loads(Path(arguments[0]).read_text())
    torch.set_num_threads(task["threads"])
    if task["do"] == "write":
        _tell(answers, write(task))
        return
    running = Running(task)
    _tell(answers, running.opened())
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "run":
            _tell(answers, running.run(int(numbers[0])))
        else:
            _tell(answers, running.finish())


def _tell(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _telling(
    answers: TextIO,
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Whatever ends the process is said as well as printed."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        known = isinstance(error, ValueError | OSError)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = " ".join(lines) if known else f"{kind.__name__}: {' '.join(lines[:1])}"
        _tell(answers, {"failed": message})

    return hook


def write(task: dict[str, Any]) -> dict[str, Any]:
    """Write a file of a kept subject, and say what is in it."""
    subject = Subject.kept(Path(task["subject"]))
    kind = BACKENDS[task["format"]]
    quantize = None
    if task["quantize"] is not None:
        photos = tuple(Image.open(path).convert("RGB") for path in task["photos"])
        quantize = Quantization(mode=task["quantize"], images=photos)
    begun = time.perf_counter()
    prepared = subject.prepared(
        kind, batch=task["batch"], precision=task["precision"], quantize=quantize
    )
    written = kind.write_prepared(prepared, Path(task["out"]))
    return {
        "writing_s": time.perf_counter() - begun,
        "nodes": written.operations,
        "types": written.types,
        "placement": written.placement,
    }


class Running:
    """A network open in a runtime."""

    def __init__(self, task: dict[str, Any]) -> None:
        """Open it, and run it once."""
        self.answer = Path(task["answer"])
        self.images = np.load(task["input"])
        self.batch: int = task["batch"]
        self.given = self.images[: self.batch]
        threads: int = task["threads"]
        if task["runtime"] in PACKAGES:
            importlib.import_module(PACKAGES[task["runtime"]])
        gc.collect()
        self.memory = Memory()
        begun = time.perf_counter()
        if task["runtime"] in BACKENDS:
            opened = open_exported(task["file"], BACKENDS[task["runtime"]], threads=threads)
            self.call: Run = opened
            self.version = opened.runtime
        else:
            self.call = _torch(task)
            self.version = f"torch {torch.__version__}"
        gc.collect()
        self.opening = time.perf_counter() - begun
        begun = time.perf_counter()
        self.call(self.given)
        self.first = time.perf_counter() - begun
        self.opening_memory = self.memory.peak()
        self.apart = self.memory.forget()

    def opened(self) -> dict[str, Any]:
        """What ran it, and how long it took to be ready."""
        return {
            "version": self.version,
            "opening_ms": 1e3 * self.opening,
            "first_ms": 1e3 * self.first,
            "opening_memory_bytes": self.opening_memory,
        }

    def run(self, count: int) -> dict[str, Any]:
        """Run it so many times, once more ahead of them: another process has just had the caches.

        Returns:
            Milliseconds of each, on the clock and of processor time.
        """
        wall, cpu = [], []
        gc.disable()
        self.call(self.given)
        for _ in range(count):
            processor, begun = time.process_time(), time.perf_counter()
            self.call(self.given)
            wall.append(1e3 * (time.perf_counter() - begun))
            cpu.append(1e3 * (time.process_time() - processor))
        gc.enable()
        return {"wall_ms": wall, "cpu_ms": cpu}

    def finish(self) -> dict[str, Any]:
        """Leave the answers to all images in a file, and say how much memory the runs took."""
        memory = self.memory.peak() if self.apart else None
        starts = range(0, len(self.images), self.batch)
        said = [self.call(self.images[start : start + self.batch]) for start in starts]
        np.savez(self.answer, *(np.concatenate(parts) for parts in zip(*said, strict=True)))
        return {"running_memory_bytes": memory}


def _torch(task: dict[str, Any]) -> Run:
    form = Subject.kept(Path(task["subject"])).inference(task["precision"])
    network: Any = torch.compile(form) if task["runtime"] == "torch-compile" else form

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            said = network(torch.from_numpy(images))
        parts = (said,) if isinstance(said, torch.Tensor) else said
        return tuple(part.numpy() for part in parts)

    return run


class Memory:
    """How much more memory this process has than when this was made, at most."""

    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        """Begin to count."""
        self.forget()
        # Not by getrusage where it can be helped: on Linux it counts what the parent had when it
        # started this process.
        self.before = self._line("VmRSS") if self.status.exists() else _most()

    def forget(self) -> bool:
        """Count the peak from here on; False where the system cannot do that."""
        if not os.access(self.reset, os.W_OK):
            return False
        self.reset.write_text("5")
        return True

    def peak(self) -> int | None:
        """Bytes; None where the system does not say."""
        now = self._line("VmHWM") if self.status.exists() else _most()
        return None if now is None or self.before is None else max(0, now - self.before)

    def _line(self, name: str) -> int:
        lines = dict(line.split(":", 1) for line in self.status.read_text().splitlines())
        return 1024 * int(lines[name].split()[0])


def _most() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1:])
