"""The command `mobilevit benchmark`: models and runtimes timed side by side."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from mobilevit.checkpoints.folder import WEIGHTS, save
from mobilevit.commands.benchmark.checks import (
    find_accuracy,
    input_images,
    measure_agreement,
    measure_around,
)
from mobilevit.commands.benchmark.measure import Worker, measure
from mobilevit.commands.benchmark.models import Subject, find_subjects
from mobilevit.commands.benchmark.report import Benchmark, Row, describe_machine, load_average
from mobilevit.commands.benchmark.worker import RUNTIME_MODULES
from mobilevit.commands.export import read_images, sample_images, size_of
from mobilevit.commands.models import count_macs
from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.spec import Precision
from mobilevit.models.registry import Network
from mobilevit.utils.devices import use_threads
from mobilevit.utils.options import Count, Options

log = logging.getLogger(__name__)

RuntimeName = Literal[
    "all", "torch", "torch-compile", "onnx", "coreml", "litert", "executorch", "openvino"
]
ALL = tuple(name for name in get_args(RuntimeName) if name not in ("all", "torch-compile"))
"""The runtimes of `all`; `torch-compile` is left out, since it takes a minute for each network."""
TIMED = {"torch", "torch-compile", *RUNTIME_MODULES}
"""Runtimes whose time is measured."""
if sys.platform != "darwin":
    TIMED.remove("coreml")  # interpreted elsewhere, which says nothing about its speed


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Options):
    """Options of `benchmark`."""

    runtime: Sequence[RuntimeName] = ("torch", "onnx")
    """torch, torch-compile, onnx, coreml, litert, executorch, openvino; or all of these but
    torch-compile."""
    sizes: Sequence[Count] | None = None
    """Sides of the images in pixels, for models that state none; by default their own."""
    threads: Sequence[Count] = (1,)
    """Numbers of threads; each gives rows of its own, like the next three options."""
    batch: Sequence[Count] = (1,)
    """Images in a batch."""
    precision: Sequence[Precision] = ("fp32",)
    """fp32, fp16."""
    quantize: Sequence[str] = ()
    """Modes of quantization, such as int8, in addition to the precisions."""
    warmup: Count = 10
    """Runs of each model before the timed ones."""
    runs: Count = 100
    """Timed runs of each model."""
    images: Sequence[str] | None = None
    """Files, folders, patterns or URLs of images to run on and to measure ranges of activations on;
    by default two that come with scikit-learn."""
    data: DataOptions | None = None
    """Labelled images, as for `evaluate`, to measure the accuracy of trained models on; by default
    the accuracy is the one in their configuration."""
    accuracies: dict[str, float] | None = None
    """Accuracies from 0 to 1 of models, by their names as given."""
    out: str | None = None
    """Folder for all figures (JSON), the tables (Markdown) and a plot (SVG)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runtime", "threads", "batch", "precision"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        known = dict.fromkeys(name for one in BACKENDS.values() for name in one.quantize_modes)
        if unknown := [name for name in self.quantize if name not in known]:
            raise ValueError(f"quantize must be of {', '.join(known)}, not {', '.join(unknown)}")

    @property
    def runtimes(self) -> list[str]:
        names = [one for name in self.runtime for one in (ALL if name == "all" else (name,))]
        return list(dict.fromkeys(names))

    @property
    def number_formats(self) -> list[tuple[Precision, str | None]]:
        """Pairs of precision and quantization."""
        return [*((one, None) for one in self.precision), *(("fp32", one) for one in self.quantize)]


def benchmark(
    *models: str | Path | Network, options: BenchmarkOptions | None = None, **fields: Any
) -> Benchmark:
    """Time models in runtimes, side by side on this machine's processor.

    A network is timed from a preprocessed tensor to its raw outputs, an exported file from its
    input to its output. Each runs in a process of its own, and these take turns, so that a change
    in the machine's speed affects all of them. Outputs are compared with PyTorch's.

    Args:
        models: whatever `load` reads; a model name, for new weights, with options such as
            mobilevit_xs:patch_sizes=8,4,2; or an exported file, for its own runtime. A size in
            pixels can follow: mobilevit_xs@320.
        options: all options; or in Python
        fields: of `BenchmarkOptions` that differ from its defaults, such as `runtime` or `runs`.

    Raises:
        ValueError: an unknown model or option.
        OSError: a model cannot be read.
        DataError, ImageError: an image or the labelled images cannot be read.

    >>> result = benchmark("mobilevit_xxs@32", runtime=["torch"], runs=2, warmup=1)
    >>> result.rows[0].median_ms > 0
    True
    """
    options = BenchmarkOptions(**fields) if options is None else replace(options, **fields)
    if not models:
        raise ValueError("give at least one model")
    images = sample_images() if options.images is None else read_images(options.images)
    subjects = find_subjects(models, options.sizes)
    names = dict.fromkeys(subject.name for subject in subjects)
    if unknown := (options.accuracies or {}).keys() - names:
        raise ValueError(
            f"accuracies has {', '.join(sorted(unknown))}; the models are {', '.join(names)}"
        )
    if options.out is not None:
        Path(options.out).mkdir(parents=True, exist_ok=True)  # fails now, not after the work
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name, use_threads(1):
        cases = [
            case
            for index, subject in enumerate(subjects)
            for case in _list_cases(subject, Path(name) / f"subject{index}", images, options)
        ]
        able = [case for case in cases if not case.row.why]
        tasks = [case.task for case in able]
        found = measure(tasks, Path(name) / "work", warmup=options.warmup, runs=options.runs)
        for case, figures in zip(able, found, strict=True):
            vars(case.row).update(figures)
            vars(case.row).update(_agreement(case, subjects))
    machine["load_after"] = load_average()
    result = Benchmark(machine=machine, rows=tuple(case.row for case in cases))
    if options.out is not None:
        result.write(Path(options.out))
    return result


class Case(NamedTuple):
    """A subject in one runtime and setting."""

    subject: Subject
    row: Row
    task: dict[str, Any]
    """What the process that runs it is given."""


def _list_cases(
    subject: Subject, folder: Path, images: Sequence[Image.Image], options: BenchmarkOptions
) -> Iterator[Case]:
    """Export the files of one subject to a folder, and list its cases in order.

    A case that is not timed or cannot run has the first number of threads only.
    """
    folder.mkdir()
    network, file = subject.network, subject.file
    runtimes, formats = options.runtimes, options.number_formats
    if file is not None and subject.format is not None:
        runtimes, formats = [subject.format.name], [(file.precision, file.quantize)]
    parameters = macs = None
    if network is not None:
        save(network, folder / "model")
        parameters = sum(weight.numel() for weight in network.parameters())
        macs = count_macs(network, subject.size)
    for index, image in enumerate(images if options.quantize else ()):
        image.save(folder / f"{index:06}.png")  # to measure ranges on
    accuracy = find_accuracy(subject, options.data, (options.accuracies or {}).get(subject.name))
    around = measure_around(subject, images[0], options.runs)
    settings = product(runtimes, formats, options.batch)
    for number, (runtime, (precision, quantize), batch) in enumerate(settings):
        row = Row(
            model=subject.name,
            task=subject.config.task,
            source=subject.config.source,
            end_to_end=subject.end_to_end,
            parameters=parameters,
            macs=macs,
            runtime=runtime,
            precision=precision,
            quantize=quantize,
            size=subject.size,
            batch=batch,
            warmup=options.warmup,
            # That of the network in PyTorch is not that of a file quantized here.
            **(accuracy if file is not None or quantize is None else {}),
            **around,
        )
        path = _provide_file(row, subject, folder, f"file{number}")
        inputs = folder / f"batch{batch}.npy"
        if not inputs.exists() and not row.why:
            np.save(inputs, input_images(subject, images, batch))
        for threads in options.threads:
            one = replace(row, threads=threads)
            task = {
                **asdict(one),
                "label": str(one),
                "folder": str(folder / "model"),
                "file": str(path),
                "input": str(inputs),
                "timed": runtime in TIMED,
                "output": str(folder / f"output{number}_{threads}.npz"),
            }
            yield Case(subject, one, task)
            if row.why or runtime not in TIMED:
                break


def _provide_file(row: Row, subject: Subject, folder: Path, name: str) -> Path:
    """The file of a row, exported in a process of its own unless it is given; or `row.why`."""
    backend = BACKENDS.get(row.runtime)
    modes = () if backend is None else backend.quantize_modes
    path = folder / "model" / WEIGHTS
    if subject.file is not None:
        path, row.why = Path(subject.name), subject.why_not(row.batch)
    elif row.quantize not in (None, *modes):
        row.why = f"{row.runtime} has no {row.quantize}"
    elif row.quantize and row.batch > 1:
        row.why = "ranges are measured on one image at a time: quantized files run at batch 1"
    elif backend is not None:
        path = folder / name / f"network{backend.suffix}"
        log.info("writing %s", row)
        task = {
            **asdict(row),
            "folder": str(folder / "model"),
            "images": sorted(map(str, folder.glob("*.png"))) if row.quantize else [],
            "out": str(path),
        }
        worker = Worker(task, path.parent)
        worker.close()
        vars(row).update(worker.facts)
        row.why = f"could not be written: {worker.why}" if worker.why else ""
    if not row.why:
        row.file_bytes = size_of(path)
    return path


def _agreement(case: Case, subjects: Sequence[Subject]) -> dict[str, Any]:
    """Agreement with PyTorch; empty without outputs, or without the network of a file."""
    subject, row, output = case.subject, case.row, Path(case.task["output"])
    networks = [one for one in (subject, *subjects) if one.network is not None]
    reference = next((one for one in networks if one.weights == subject.weights), None)
    if reference is None or not output.exists():
        return {}
    with np.load(output) as arrays:
        outputs = [arrays[name] for name in arrays.files]
    return measure_agreement(row, reference, np.load(case.task["input"]), outputs)
