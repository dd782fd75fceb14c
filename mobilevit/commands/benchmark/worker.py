"""A process of `mobilevit benchmark`: it writes one file, or runs one network in one runtime.

    python -m mobilevit.commands.benchmark.worker TASK.json

Each network runs in its own process, so that runtimes do not share memory or threads, and a crash
ends that process alone. Replies are JSON objects, one a line, on standard output, mostly of fields
of `Row`; other output of libraries goes to standard error.
"""

import gc
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mobilevit.checkpoints.create import load
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.spec import ExportSpec
from mobilevit.models.fuse import fuse

RUNTIME_MODULES = {
    "onnx": "onnxruntime",
    "coreml": "coremltools",
    "litert": "ai_edge_litert.interpreter",
    "executorch": "executorch.runtime",
    "openvino": "openvino",
}
"""Format -> the module of its runtime, imported before a network's memory is counted."""
PORTABLE = re.compile(r"portable kernels take (?!nothing)")
"""How `FileSummary.placement` reports operations that run on slow reference kernels."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Reply = Callable[[dict[str, Any]], None]
Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def main(arguments: list[str]) -> None:
    """Do one task: `write_file` or `run_network`."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(values: dict[str, Any]) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    task: dict[str, Any] = json.loads(Path(arguments[0]).read_text())
    torch.set_num_threads(task["threads"])
    try:
        if "out" in task:
            reply(write_file(task))
        else:
            run_network(task, reply)
    except Exception as error:  # reported to the parent process, and raised
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        for_users = isinstance(error, ValueError | OSError)
        message = f"{type(error).__name__}: {' '.join(lines[:1])}"
        reply({"failed": " ".join(lines) if for_users else message})
        raise


def write_file(task: dict[str, Any]) -> dict[str, Any]:
    """Export the network of a model folder: prepared tensors in, logits out, one batch size."""
    backend = BACKENDS[task["runtime"]]
    model = load(task["folder"])
    spec = ExportSpec(
        raw=True,
        precision=task["precision"],
        quantize=task["quantize"],
        calibration=tuple(Image.open(path).convert("RGB") for path in task["images"]),
    )
    begun = time.perf_counter()
    prepared = backend.prepare(model, spec)
    size = model.config.preprocessing.crop
    example = torch.zeros(task["batch"], 3, size, size)
    written = backend.write_prepared(replace(prepared, example=example), Path(task["out"]))
    return {
        "writing_s": time.perf_counter() - begun,
        "operations": written.operations,
        "types": written.types,
        "placement": written.placement or None,
        "has_slow_kernels": PORTABLE.search(written.placement) is not None,
    }


def run_network(task: dict[str, Any], reply: Reply) -> None:
    """Open a network and run it once; then do what standard input asks.

    `run COUNT` times so many runs; `finish` writes the outputs for all images to a file.
    """
    output, images, batch = Path(task["output"]), np.load(task["input"]), task["batch"]
    example, runtime = images[:batch], task["runtime"]
    if runtime in RUNTIME_MODULES:
        importlib.import_module(RUNTIME_MODULES[runtime])
    call: Run
    gc.collect()
    _reset_peak()
    # On Linux not by getrusage, which also counts what the parent had when it forked.
    before = _memory("VmRSS")
    begun = time.perf_counter()
    if runtime in BACKENDS:
        opened = open_exported(task["file"], BACKENDS[runtime], threads=task["threads"])
        call, version = opened, opened.runtime
    else:
        call = _torch_run(task["folder"], task["precision"], compiled=runtime == "torch-compile")
        version = f"torch {torch.__version__}"
    gc.collect()
    opened_at = time.perf_counter()
    call(example)
    figures: dict[str, Any] = {"version": version}
    if task["timed"]:
        figures["opening_ms"] = 1e3 * (opened_at - begun)
        figures["first_run_ms"] = 1e3 * (time.perf_counter() - opened_at)
        figures["opening_bytes"] = _growth(before)
    peak_is_known = _reset_peak() and task["timed"]
    reply(figures)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "run":
            reply(_time(call, example, int(numbers[0])))
            continue
        figures = {"running_bytes": _growth(before) if peak_is_known else None}
        starts = range(0, len(images), batch)
        outputs = [call(images[start : start + batch]) for start in starts]
        np.savez(output, *(np.concatenate(parts) for parts in zip(*outputs, strict=True)))
        reply(figures)


def _torch_run(folder: str, precision: str, *, compiled: bool) -> Run:
    """A model folder in PyTorch: fused and channels-last."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network: Any = fuse(load(folder)).to(dtype).requires_grad_(False)
    if compiled:
        network = torch.compile(network)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(images).to(dtype))
        parts = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return tuple(part.float().numpy() for part in parts)

    return run


def _time(call: Run, example: np.ndarray, count: int) -> dict[str, list[float]]:
    """Time `count` runs, after one that does not count: the caches are another process's."""
    wall, cpu = [], []
    gc.disable()
    call(example)
    for _ in range(count):
        processor, begun = time.process_time(), time.perf_counter()
        call(example)
        wall.append(1e3 * (time.perf_counter() - begun))
        cpu.append(1e3 * (time.process_time() - processor))
    gc.enable()
    return {"wall_ms": wall, "cpu_ms": cpu}


def _reset_peak() -> bool:
    """Count the peak of memory from here on; False if the system does not support that."""
    if not os.access(RESET, os.W_OK):
        return False
    RESET.write_text("5")
    return True


def _growth(before: int | None) -> int | None:
    """How many bytes more than `before` this process had at its peak."""
    peak = _memory("VmHWM")
    return None if peak is None or before is None else max(0, peak - before)


def _memory(name: str) -> int | None:
    """Bytes in memory: a line of Linux's status; on macOS the peak, on Windows None."""
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(lines[name].split()[0])
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1:])
