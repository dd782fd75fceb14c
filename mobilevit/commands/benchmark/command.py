"""The command `mobilevit benchmark`: models and runtimes timed side by side."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Literal, get_args

import numpy as np

from mobilevit.commands.benchmark.cases import Case, Place, cases_of, write_files
from mobilevit.commands.benchmark.checks import Agreement, accuracy, agreement, around
from mobilevit.commands.benchmark.measure import measured
from mobilevit.commands.benchmark.models import AnySubject, FileSubject, Subject, subjects
from mobilevit.commands.benchmark.report import Benchmark, Machine, Row, load
from mobilevit.commands.export import read_images, sample_images, size_of
from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.spec import Precision
from mobilevit.models.registry import Network
from mobilevit.utils.devices import use_threads

RuntimeName = Literal[
    "all", "torch", "torch-compile", "onnx", "coreml", "litert", "executorch", "openvino"
]
EVERY = tuple(name for name in get_args(RuntimeName) if name not in ("all", "torch-compile"))
"""What `all` stands for; `torch-compile` takes a minute for each network."""
PORTABLE = re.compile(r"portable kernels take (?!nothing)")
"""How `FileSummary.placement` states that portable kernels run a part of the graph."""


def benchmark(
    *models: str | Path | Network,
    runtime: Sequence[RuntimeName] = ("torch", "onnx"),
    sizes: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    batch: Sequence[int] = (1,),
    precision: Sequence[Precision] = ("fp32",),
    quantize: Sequence[str] = (),
    warmup: int = 10,
    runs: int = 100,
    photos: Sequence[str] | None = None,
    data: DataOptions | None = None,
    accuracies: dict[str, float] | None = None,
    out: str | None = None,
) -> Benchmark:
    """Time models in runtimes, side by side on this machine's processor.

    Networks are timed alone: a prepared tensor in, raw outputs out; an exported file as it is. Each
    runs in a process of its own, and they take turns, so that a change of the machine's pace meets
    all alike. What a runtime says is compared with PyTorch on photos.

    Args:
        models: whatever `load` reads; a model name, for new weights, with options such as
            mobilevit_xs:patch_sizes=8,4,2; an exported file, for its own runtime; a network of
            others, timm:NAME or torchvision:NAME. A size in pixels may follow: mobilevit_xs@320.
        runtime: torch, torch-compile, onnx, coreml, litert, executorch, openvino; or all, without
            torch-compile.
        sizes: sides of the images in pixels, for models that state none; by default their own.
        threads: compute threads, each number in rows of its own; so the next three.
        batch: images at a time.
        precision: fp32, fp16.
        quantize: kinds of fewer bits, such as int8, beside the precisions; of formats that can.
        warmup: runs of each ahead of those that count.
        runs: of each that count.
        photos: files, folders, patterns or addresses of images to run on (and to measure ranges
            on); by default two that scikit-learn brings.
        data: labelled images, as for `evaluate`, that trained models are evaluated on; by default
            their accuracy is what their configuration says.
        accuracies: shares that are known of models from elsewhere, by the models' names as given.
        out: folder for all figures (JSON), the tables (Markdown) and a plot (SVG).

    Raises:
        ValueError: a model or an option that is not known; the message says what is.
        OSError: a model cannot be read.
        DataError, ImageError: a photo or the labelled images cannot be read.
    """
    for name, value in (("runs", runs), ("warmup", warmup)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for name, values in (("threads", threads), ("batch", batch), ("sizes", sizes or [32])):
        if not values or min(values) < 1:
            raise ValueError(f"{name} must be numbers of at least 1, not {list(values)}")
    settings = _settings(precision, quantize)
    runtimes = _runtimes(runtime)
    if not models:
        raise ValueError("no model is named")
    images = sample_images() if photos is None else read_images(photos)
    chosen = subjects(models, sizes)
    accuracies = dict(accuracies or {})
    if unknown := accuracies.keys() - {subject.name for subject in chosen}:
        raise ValueError(
            f"accuracies are stated of {', '.join(sorted(unknown))}; the models are "
            f"{', '.join(dict.fromkeys(subject.name for subject in chosen))}"
        )
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # now, not after the work
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as name, use_threads(1):
        places = [
            Place(
                subject=subject,
                folder=Path(name) / f"subject{index}",
                images=images,
                accuracy=accuracy(subject, data, accuracies.get(subject.name)),
            )
            for index, subject in enumerate(chosen)
        ]
        cases = [
            case for place in places for case in cases_of(place, runtimes, settings, batch, threads)
        ]
        write_files(cases)
        # Why there is none of a file is said once, not for each number of threads.
        cases = [case for case in cases if not case.why or case.threads == threads[0]]
        able = [case for case in cases if not case.why]
        folder = Path(name) / "work"
        folder.mkdir()
        for index, case in enumerate(able):
            case.answer = folder / f"answer{index}.npz"
        tasks = [case.task() for case in able]
        for case, found in zip(
            able, measured(tasks, folder, warmup=warmup, runs=runs), strict=True
        ):
            case.found = found
        rows = [_row(case, places, warmup) for case in cases]
        about = tuple(around(place.subject, images[0], runs) for place in places)
    result = Benchmark(
        machine=replace(machine, load_after=load()),
        rows=tuple(rows),
        around=about,
        notes=tuple(_notes(chosen)),
    )
    if out is not None:
        result.write(Path(out))
    return result


def _runtimes(names: Sequence[RuntimeName]) -> list[str]:
    """Runtimes by name, each once.

    Raises:
        ValueError: one is unknown.
    """
    known = get_args(RuntimeName)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"runtime must be of {', '.join(known)}, not {', '.join(unknown)}")
    every = [one for name in names for one in (EVERY if name == "all" else (name,))]
    return list(dict.fromkeys(every))


def _settings(
    precision: Sequence[Precision], quantize: Sequence[str]
) -> list[tuple[Precision, str | None]]:
    """What networks compute in, and how their weights are kept.

    Raises:
        ValueError: no format can do that.
    """
    if not precision or not set(precision) <= {"fp32", "fp16"}:
        given = ", ".join(precision) or "none"
        raise ValueError(f"precision must be fp32, fp16 or both, not {given}")
    kinds = dict.fromkeys(kind for one in BACKENDS.values() for kind in one.quantize_modes)
    if unknown := [kind for kind in quantize if kind not in kinds]:
        raise ValueError(f"quantize must be of {', '.join(kinds)}, not {', '.join(unknown)}")
    return [*((one, None) for one in precision), *(("fp32", kind) for kind in quantize)]


def _row(case: Case, places: Sequence[Place], warmup: int) -> Row:
    subject, found, facts = case.place.subject, case.found, case.found.facts
    wall = [value for turn in found.wall_ms for value in turn]
    low, _, high = quantiles(found.ratios, n=4) if len(found.ratios) > 1 else (None, None, None)
    evaluated = isinstance(subject, FileSubject) or case.quantize is None
    placement = case.written.get("placement") or None
    file = case.place.weights if case.runtime not in BACKENDS else case.file
    why = case.why or found.why
    if not case.timed and not why:
        why = f"not timed: here its runtime is {facts['version']}, which says nothing of its time"
        facts = {"version": facts["version"]}
    return Row(
        model=subject.name,
        task=subject.config.task,
        source=subject.config.source,
        parameters=subject.parameters if isinstance(subject, Subject) else None,
        macs=case.place.macs,
        accuracy=case.place.accuracy if evaluated else None,
        runtime=case.runtime,
        version=facts.get("version"),
        precision=case.precision,
        quantize=case.quantize,
        size=subject.size,
        batch=case.batch,
        threads=case.threads,
        whole=isinstance(subject, FileSubject) and not subject.metadata.raw,
        warmup=warmup if wall else 0,
        runs=len(wall),
        median_ms=median(wall) if wall else None,
        p90_ms=float(np.quantile(wall, 0.9)) if wall else None,
        min_ms=min(wall, default=None),
        cpu_ms=median(found.cpu_ms) if found.cpu_ms else None,
        ratio=median(found.ratios) if found.ratios else None,
        ratio_quartiles=None if low is None or high is None else (low, high),
        cpu_ratio=median(found.cpu_ratios) if found.cpu_ratios else None,
        opening_ms=facts.get("opening_ms"),
        first_ms=facts.get("first_ms"),
        opening_memory_bytes=facts.get("opening_memory_bytes"),
        running_memory_bytes=facts.get("running_memory_bytes"),
        file_bytes=None if file is None else size_of(file),
        nodes=case.written.get("nodes"),
        types=case.written.get("types"),
        placement=placement,
        fallback=PORTABLE.search(placement or "") is not None,
        writing_s=case.written.get("writing_s"),
        agreement=_agreement(case, places),
        why=why,
    )


def _agreement(case: Case, places: Sequence[Place]) -> Agreement | None:
    """How far the answers are from PyTorch's; None where there are none, or nothing to compare."""
    subject = case.place.subject
    reference = subject if isinstance(subject, Subject) else _same(subject, places)
    if reference is None or case.answer is None or not case.answer.exists():
        return None
    with np.load(case.answer) as said:
        parts = [said[name] for name in said.files]
    return agreement(
        reference,
        np.load(case.place.given(case.batch)),
        parts,
        raw=isinstance(subject, Subject) or subject.metadata.raw,
        precision=case.precision,
        quantize=case.quantize,
    )


def _same(file: FileSubject, places: Sequence[Place]) -> Subject | None:
    """The network among the subjects that a file was made of, by its weights."""
    for place in places:
        other = place.subject
        if isinstance(other, Subject) and other.weights == file.metadata.weights:
            return other
    return None


def _notes(chosen: Sequence[AnySubject]) -> Iterator[str]:
    files = [subject.name for subject in chosen if isinstance(subject, FileSubject)]
    new = [subject.name for subject in chosen if isinstance(subject, Subject) and subject.new]
    if new:
        yield (
            f"new weights, whose answers mean nothing: {', '.join(dict.fromkeys(new))}; time and "
            "memory are those of trained ones"
        )
    if files:
        yield (
            f"compared with PyTorch where the model is named too: {', '.join(dict.fromkeys(files))}"
        )
