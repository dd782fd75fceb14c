"""Our exported files next to timm's and transformers' networks, exported by the same tools.

    pip install -e '.[bench,onnx,openvino,executorch,litert]'
    python benchmarks/exports.py [--variants mobilevit_xxs] [--runtimes onnx] [--rounds 60]

The same new weights in all three, 256 px, batch 1, float32, a preprocessed tensor in and logits
out. The others are exported unmodified: by `torch.export` and the runtime's tool with its default
options. Every file runs once in each round, in a new order; the figures are median and quartiles of
the ratio of processor times.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import peers
import torch
from harness import Ratio, measure
from torch import Tensor, nn

import mobilevit
from mobilevit.checkpoints.timm import V1
from mobilevit.exports.backends.registry import open_exported
from mobilevit.exports.toolchain import capture_stderr, quiet

Run = Callable[[np.ndarray], np.ndarray]
SIZE = 256


def onnx(model: nn.Module, x: Tensor, path: Path) -> Run:
    """By torch's own exporter, in ONNX Runtime."""
    ort: Any = importlib.import_module("onnxruntime")
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]  # type: ignore[no-any-return]


def openvino(model: nn.Module, x: Tensor, path: Path) -> Run:
    """By OpenVINO's converter of `torch.export`'s graph."""
    ov: Any = importlib.import_module("openvino")
    network = ov.convert_model(torch.export.export(model, (x,)))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.compile_model(network, "CPU", settings)
    return lambda image: compiled(image)[0]  # type: ignore[no-any-return]


def executorch(model: nn.Module, x: Tensor, path: Path) -> Run:
    """Lowered to XNNPACK, what that does not take on portable kernels."""
    exir: Any = importlib.import_module("executorch.exir")
    xnnpack: Any = importlib.import_module(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    )
    runtime: Any = importlib.import_module("executorch.runtime")
    bindings: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
    program = torch.export.export(model, (x,))
    lowered = exir.to_edge_transform_and_lower(
        program, partitioner=[xnnpack.XnnpackPartitioner()]
    ).to_executorch()
    path.write_bytes(lowered.buffer)
    bindings._unsafe_reset_threadpool(1)
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    return lambda image: method.execute([torch.from_numpy(image)])[0].numpy()  # type: ignore[no-any-return]


def litert(model: nn.Module, x: Tensor, path: Path) -> Run:
    """By litert-torch."""
    litert_torch: Any = importlib.import_module("litert_torch")
    interpreter_: Any = importlib.import_module("ai_edge_litert.interpreter")
    litert_torch.convert(model, (x,)).export(str(path))
    interpreter = interpreter_.Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    ((name, _),) = run.get_input_details().items()
    return lambda image: next(iter(run(**{name: image}).values()))  # type: ignore[no-any-return]


SUFFIXES = {"onnx": ".onnx", "openvino": ".openvino", "executorch": ".pte", "litert": ".tflite"}
TOOLS = {"onnx": onnx, "openvino": openvino, "executorch": executorch, "litert": litert}


def compare(variant: str, runtime: str, folder: Path, rounds: int) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    ours = mobilevit.create_model(variant).eval()
    others = {
        "timm": peers.timm(variant, V1.from_ours(ours.state_dict())).eval(),
        "transformers": peers.transformers(variant, ours.state_dict()).eval(),
    }
    x = torch.rand(1, 3, SIZE, SIZE)
    image = x.numpy()
    path = folder / f"ours-{variant}{SUFFIXES[runtime]}"
    mobilevit.export(ours, mobilevit.ExportOptions(out=str(path), raw=True))
    runner = open_exported(path)
    runs: dict[str, Run] = {"ours": lambda given: runner(given)[0]}
    with torch.no_grad(), quiet(), capture_stderr(), contextlib.redirect_stdout(io.StringIO()):
        expected = ours(x).numpy()
        for name, model in others.items():
            runs[name] = TOOLS[runtime](model, x, folder / f"{name}-{variant}{SUFFIXES[runtime]}")
    for name, run in runs.items():
        off = float(np.abs(run(image) - expected).max() / expected.std())
        if off > 1e-3:
            raise SystemExit(f"{name}'s {variant} in {runtime} differs: {off:.2g}")
    steps = {name: partial(run, image) for name, run in runs.items()}
    times = measure(steps, rounds, clock=time.process_time)
    cells = [variant, runtime, f"{1000 * statistics.median(times['ours']):.1f}"]
    cells += [str(Ratio.of(times[name], times["ours"])) for name in others]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default="mobilevit_xxs,mobilevit_s", help="commas between")
    parser.add_argument("--runtimes", default=",".join(TOOLS), help="commas between")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| | runtime | ours, ms | timm / ours | transformers / ours |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.variants.split(","):
            for runtime in options.runtimes.split(","):
                print(compare(variant, runtime, Path(folder), options.rounds), flush=True)


if __name__ == "__main__":
    main()
