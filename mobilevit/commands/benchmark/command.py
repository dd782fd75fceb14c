"""The command `mobilevit benchmark`: models and runtimes timed side by side."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, get_args

import numpy as np

from mobilevit.commands.benchmark.cases import (
    Case,
    Entry,
    list_cases,
    write_files,
)
from mobilevit.commands.benchmark.checks import (
    Agreement,
    find_accuracy,
    measure_agreement,
    measure_around,
)
from mobilevit.commands.benchmark.measure import measure
from mobilevit.commands.benchmark.models import Subject, find_subjects
from mobilevit.commands.benchmark.report import (
    Benchmark,
    FileInfo,
    Machine,
    MemoryUse,
    ModelInfo,
    Row,
    Startup,
    Timing,
    load_average,
)
from mobilevit.commands.export import read_images, sample_images, size_of
from mobilevit.commands.models import count_macs
from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.spec import Precision
from mobilevit.models.registry import Network
from mobilevit.utils.devices import use_threads
from mobilevit.utils.options import Count, Options

RuntimeName = Literal[
    "all", "torch", "torch-compile", "onnx", "coreml", "litert", "executorch", "openvino"
]
ALL = tuple(name for name in get_args(RuntimeName) if name not in ("all", "torch-compile"))
"""The runtimes of `all`; `torch-compile` is left out, since it takes a minute for each network."""
PORTABLE = re.compile(r"portable kernels take (?!nothing)")
"""How `FileSummary.placement` reports operations that run on slow reference kernels."""


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
    >>> result.rows[0].timing.median_ms > 0
    True
    """
    options = BenchmarkOptions(**fields) if options is None else replace(options, **fields)
    out, data, threads = options.out, options.data, options.threads
    if not models:
        raise ValueError("give at least one model")
    images = sample_images() if options.images is None else read_images(options.images)
    subjects = find_subjects(models, options.sizes)
    stated = options.accuracies or {}
    if unknown := stated.keys() - {subject.name for subject in subjects}:
        raise ValueError(
            f"accuracies has {', '.join(sorted(unknown))}; the models are "
            f"{', '.join(dict.fromkeys(subject.name for subject in subjects))}"
        )
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as name, use_threads(1):
        entries = [
            Entry(
                subject=subject,
                folder=Path(name) / f"subject{index}",
                images=images,
                accuracy=find_accuracy(subject, data, stated.get(subject.name)),
            )
            for index, subject in enumerate(subjects)
        ]
        cases = [
            case
            for one in entries
            for case in list_cases(
                one, options.runtimes, options.number_formats, options.batch, threads
            )
        ]
        write_files(cases)
        # A file that could not be written is one row, not one for each number of threads.
        cases = [case for case in cases if not case.why or case.setting.threads == threads[0]]
        able = [case for case in cases if not case.why]
        folder = Path(name) / "work"
        folder.mkdir()
        tasks = [case.task(folder / f"output{index}.npz") for index, case in enumerate(able)]
        for case, measurement in zip(
            able, measure(tasks, folder, warmup=options.warmup, runs=options.runs), strict=True
        ):
            case.measurement = measurement
        result = Benchmark(
            machine=replace(machine, load_after=load_average()),
            rows=tuple(_row(case, subjects, options.warmup) for case in cases),
            around=tuple(measure_around(subject, images[0], options.runs) for subject in subjects),
            notes=tuple(_notes(subjects)),
        )
    if out is not None:
        result.write(Path(out))
    return result


def _row(case: Case, subjects: Sequence[Subject], warmup: int) -> Row:
    subject, setting, facts = case.entry.subject, case.setting, case.measurement.facts
    version = facts.get("version")
    why = case.why or case.measurement.why
    if not case.timed and not why:
        why = f"not timed: {version} does not run it at its real speed here"
    startup: dict[str, Any] | None = facts.get("startup")
    # The accuracy is that of the network in PyTorch, or of the file; not of a file quantized here.
    has_accuracy = subject.file is not None or setting.quantize is None
    in_torch = setting.runtime not in BACKENDS
    file = case.entry.weights_file if in_torch else case.file
    placement: str | None = case.written.get("placement") or None
    return Row(
        model=ModelInfo(
            name=subject.name,
            task=subject.config.task,
            source=subject.config.source,
            parameters=subject.parameters,
            macs=None if subject.network is None else count_macs(subject.network, subject.size),
            accuracy=case.entry.accuracy if has_accuracy else None,
            end_to_end=subject.end_to_end,
        ),
        setting=setting,
        version=version,
        timing=_timing(case, warmup),
        startup=Startup(**startup) if startup and case.timed else None,
        memory=MemoryUse(
            opening_bytes=facts.get("opening_bytes") if case.timed else None,
            running_bytes=facts.get("running_bytes") if case.timed else None,
        ),
        file=FileInfo(
            bytes=None if file is None else size_of(file),
            operations=case.written.get("operations"),
            types=case.written.get("types"),
            placement=placement,
            has_slow_kernels=PORTABLE.search(placement or "") is not None,
            writing_s=case.written.get("writing_s"),
        ),
        agreement=_agreement(case, subjects),
        why=why,
    )


def _timing(case: Case, warmup: int) -> Timing | None:
    found = case.measurement
    if not found.wall_ms:
        return None
    low, _, high = quantiles(found.ratios, n=4) if len(found.ratios) > 1 else (None, None, None)
    return Timing(
        warmup=warmup,
        runs=len(found.wall_ms),
        median_ms=median(found.wall_ms),
        p90_ms=float(np.quantile(found.wall_ms, 0.9)),
        min_ms=min(found.wall_ms),
        cpu_ms=median(found.cpu_ms),
        ratio=median(found.ratios) if found.ratios else None,
        ratio_quartiles=None if low is None or high is None else (low, high),
        cpu_ratio=median(found.cpu_ratios) if found.cpu_ratios else None,
    )


def _agreement(case: Case, subjects: Sequence[Subject]) -> Agreement | None:
    """Agreement with PyTorch; None without outputs, or without the network of a file."""
    subject = case.entry.subject
    reference = next(
        (one for one in subjects if one.network and one.weights == subject.weights), None
    )
    reference = subject if subject.network else reference
    if reference is None or case.output is None or not case.output.exists():
        return None
    with np.load(case.output) as arrays:
        outputs = [arrays[name] for name in arrays.files]
    return measure_agreement(
        reference,
        np.load(case.entry.input_file(case.setting.batch)),
        outputs,
        raw=not subject.end_to_end,
        precision=case.setting.precision,
        quantize=case.setting.quantize,
    )


def _notes(subjects: Sequence[Subject]) -> Iterator[str]:
    new = dict.fromkeys(subject.name for subject in subjects if subject.is_new)
    files = dict.fromkeys(subject.name for subject in subjects if subject.file)
    if new:
        yield (
            f"new weights, whose predictions mean nothing: {', '.join(new)}; time and memory are "
            "those of trained ones"
        )
    if files:
        yield (f"compared with PyTorch if their model is benchmarked too: {', '.join(files)}")
