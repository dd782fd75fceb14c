"""The fastest runtime for a network on this machine's CPU: PyTorch, or that of an exported file."""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilevit.exports.backends.registry import BACKENDS, FormatName
from mobilevit.exports.runtime_model import FileNetwork, OptimizedNetwork, Trial
from mobilevit.exports.spec import ExportError, ExportSpec, MissingExtraError
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.utils.devices import use_threads

TOLERANCE = 1e-4
"""Largest difference of an output from PyTorch's, relative to its largest absolute value."""
ROUNDS = 7
"""How often each candidate is timed; the median counts."""


def optimize(
    model: Network,
    *,
    sizes: int | Sequence[int] | None = None,
    batch_size: int = 1,
    formats: FormatName | Sequence[FormatName] = ("onnx",),
    threads: int | None = None,
) -> OptimizedNetwork:
    """Prepare a network for inference on this machine's CPU by the fastest of several runtimes.

    The candidates are the fused network in PyTorch and, for each of the sizes, files of each of the
    formats in their own runtimes, as `export` writes them with `raw`; preparing a file takes 10 to
    30 seconds, and above 512 px gigabytes of memory. Each candidate runs random images in batches
    of 1, 2 and `batch_size`. It is left out if an output differs from PyTorch's by more than 1e-4
    of the output's largest value, if its packages are not installed, or if the fused network is
    faster. `trials` of the result, which `print` shows, lists times, differences and reasons.

    The result is called like the network, without gradients, on float32 images of any size and
    batch on the CPU; sizes that were not prepared run in the fused network. `predict` and
    `evaluate` take it in place of a network.

    Args:
        model: a network of `create_model` or `load`, not fused; it is left unchanged.
        sizes: side of square images in pixels, or several; by default the size of the model's
            preprocessing.
        batch_size: images at a time for which the runtimes are timed.
        formats: of exported files to try, `onnx` and `openvino`; other formats are for phones.
        threads: compute threads of the runtimes, and of the fused network while it is timed; by
            default torch's number.

    Raises:
        ExportError: the network cannot be exported, such as one that is fused or has no head.
        ValueError: a size or the batch size is not a whole number of at least 1, or there are other
            formats.

    >>> from mobilevit import create_model, optimize
    >>> network = optimize(create_model("mobilevit_xxs"), formats=())
    >>> network(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1000])
    """
    if not hasattr(model, "backbone"):
        raise ExportError(f"{model.name} has no head, so it cannot be exported; use fuse")
    sizes = model.config.preprocessing.crop if sizes is None else sizes
    sizes = sizes if isinstance(sizes, Sequence) else [sizes]
    formats = (formats,) if isinstance(formats, str) else formats
    threads = torch.get_num_threads() if threads is None else threads
    if not all(isinstance(n, int) and n >= 1 for n in (*sizes, batch_size, threads)):
        raise ValueError(
            "sizes, batch_size and threads must be whole numbers of at least 1, not "
            f"{list(sizes)}, {batch_size} and {threads}"
        )
    if not set(formats) <= {"onnx", "openvino"}:
        raise ValueError(f"formats must be of onnx and openvino, not {', '.join(formats)}")
    model = copy.deepcopy(model).cpu().eval()
    fused = fuse(model)
    files: dict[int, FileNetwork] = {}
    trials: list[Trial] = []
    with use_threads(threads), torch.inference_mode():
        for size in dict.fromkeys(sizes):
            candidates, left_out = _candidates(model, fused, size, batch_size, formats, threads)
            seconds = _time({"torch": fused, **candidates}, _images(model, batch_size, size))
            fastest = min(seconds, key=lambda name: seconds[name])
            if fastest in candidates:
                files[size] = candidates[fastest]
            trials += [
                Trial(size, batch_size, name, milliseconds=1e3 * taken, selected=name == fastest)
                for name, taken in seconds.items()
            ]
            trials += left_out
    return OptimizedNetwork(fused, files, tuple(trials))


def _candidates(
    model: Network,
    fused: Network,
    size: int,
    batch_size: int,
    formats: Sequence[FormatName],
    threads: int,
) -> tuple[dict[str, FileNetwork], list[Trial]]:
    """The files of this size that agree with PyTorch, by format, and those that are left out."""
    sized = copy.copy(model)
    sized.config = replace(model.config, preprocessing=model.config.preprocessing.at(size))
    files: dict[str, FileNetwork] = {}
    left_out = []
    for name in formats:
        backend = BACKENDS[name]
        try:
            with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
                path = Path(folder) / f"network{backend.suffix}"
                backend.write(sized, ExportSpec(raw=True, dynamic="batch"), path)
                file = FileNetwork(backend.open(path, threads))
        except MissingExtraError as error:
            left_out.append(Trial(size, batch_size, name, reason=str(error)))
            continue
        batches = [_images(model, count, size) for count in sorted({1, 2, batch_size})]
        difference = _difference(fused, file, batches)
        if difference <= TOLERANCE:
            files[name] = file
        else:
            reason = f"differs from PyTorch by {difference:.1e}, more than {TOLERANCE:g}"
            left_out.append(Trial(size, batch_size, name, reason=reason))
    return files, left_out


def _images(model: Network, batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, model.backbone.in_channels, size, size, generator=generator)


def _difference(fused: Network, file: FileNetwork, batches: Sequence[Tensor]) -> float:
    """The largest difference of an output, relative to its largest absolute value."""
    differences = []
    for images in batches:
        expected, found = fused(images), file(images)
        if isinstance(expected, Tensor):
            expected, found = (expected,), (found,)
        for one, other in zip(expected, found, strict=True):
            scale = one.abs().max().clamp(min=torch.finfo(one.dtype).tiny)
            differences.append((other - one).abs().max() / scale)
    return float(torch.stack(differences).max())  # which propagates NaN, unlike Python's


def _time(networks: dict[str, Callable[[Tensor], Any]], images: Tensor) -> dict[str, float]:
    """Seconds that each network takes, in turns, after a first run that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(1 + ROUNDS):
        for name, network in networks.items():
            start = time.perf_counter()
            network(images)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}
