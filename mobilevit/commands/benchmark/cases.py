"""The cases of `mobilevit benchmark`: each subject in each runtime and setting, one row each."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.checkpoints.folder import WEIGHTS, save
from mobilevit.commands.benchmark.checks import Accuracy, input_images
from mobilevit.commands.benchmark.measure import Measurement, Worker, WorkerError
from mobilevit.commands.benchmark.models import Subject
from mobilevit.commands.benchmark.report import Setting
from mobilevit.commands.benchmark.worker import RUNTIME_MODULES
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.spec import Precision

log = logging.getLogger(__name__)

TIMED = {"torch", "torch-compile", *RUNTIME_MODULES}
"""Runtimes whose time is measured."""
if sys.platform != "darwin":
    TIMED.remove("coreml")  # interpreted elsewhere, which says nothing about its speed


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A subject, its files in a folder that other processes read, and its accuracy."""

    subject: Subject
    folder: Path
    images: Sequence[Image.Image]
    accuracy: Accuracy | None

    def __post_init__(self) -> None:
        self.folder.mkdir()
        if self.subject.network is not None:
            save(self.subject.network, self.model)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def weights_file(self) -> Path:
        return self.model / WEIGHTS

    def input_file(self, batch: int) -> Path:
        """The file of the images that the subject runs on."""
        path = self.folder / f"batch{batch}.npy"
        if not path.exists():
            np.save(path, input_images(self.subject, self.images, batch))
        return path

    def image_files(self) -> list[str]:
        """Files of the images that ranges of activations are measured on."""
        paths = [self.folder / f"image{index}.png" for index in range(len(self.images))]
        for path, image in zip(paths, self.images, strict=True):
            if not path.exists():
                image.save(path)
        return [str(path) for path in paths]


@dataclass(kw_only=True)
class Case:
    """A subject in one runtime and setting; it becomes one row."""

    entry: Entry
    setting: Setting
    timed: bool
    why: str = ""
    """Why it cannot be measured, if that is known beforehand."""
    file: Path | None = None
    """The exported file; None for PyTorch."""
    written: dict[str, Any] = field(default_factory=dict)
    """Facts reported by the process that wrote the file."""
    output: Path | None = None
    measurement: Measurement = field(default_factory=Measurement)

    @property
    def label(self) -> str:
        name, setting = self.entry.subject.name, self.setting
        return f"{name}, {setting.size} px, {setting.runtime}, {setting.dtype}"

    def task(self, output: Path) -> dict[str, Any]:
        """The worker's task, which writes the outputs to the file `output`."""
        self.output = output
        return {
            "do": "run",
            "label": self.label,
            "model": str(self.entry.model),
            "runtime": self.setting.runtime,
            "precision": self.setting.precision,
            "file": None if self.file is None else str(self.file),
            "input": str(self.entry.input_file(self.setting.batch)),
            "batch": self.setting.batch,
            "threads": self.setting.threads,
            "timed": self.timed,
            "output": str(output),
        }


def list_cases(
    entry: Entry,
    runtimes: Sequence[str],
    formats: Sequence[tuple[Precision, str | None]],
    batches: Sequence[int],
    threads: Sequence[int],
) -> Iterator[Case]:
    """The cases of one subject, in order, including those that cannot be run.

    A case that is not timed or cannot run has the first number of threads only.
    """
    subject = entry.subject
    if subject.file is not None and subject.format is not None:
        runtimes = [subject.format.name]
        formats = [(subject.file.precision, subject.file.quantize)]
    for runtime, (precision, quantize), batch in product(runtimes, formats, batches):
        for count in threads:
            case = Case(
                entry=entry,
                setting=Setting(
                    runtime=runtime,
                    precision=precision,
                    quantize=quantize,
                    size=subject.size,
                    batch=batch,
                    threads=count,
                ),
                timed=runtime in TIMED,
                file=None if subject.file is None else Path(subject.name),
            )
            case.why = _why_not(case)
            yield case
            if case.why or not case.timed:
                break


def _why_not(case: Case) -> str:
    subject, runtime, quantize = case.entry.subject, case.setting.runtime, case.setting.quantize
    if subject.file is not None:
        return subject.why_not(case.setting.batch)
    if quantize is None:
        return ""
    backend = BACKENDS.get(runtime)
    if backend is None or quantize not in backend.quantize_modes:
        return f"{runtime} has no {quantize}"
    if case.setting.batch > 1:
        return "ranges are measured on one image at a time: quantized files run at batch 1"
    return ""


def write_files(cases: Sequence[Case]) -> None:
    """Export the files that cases need, each in a process of its own."""
    written: dict[tuple[Any, ...], Case] = {}
    for case in cases:
        setting = case.setting
        if case.why or case.file is not None or setting.runtime not in BACKENDS:
            continue
        key = (id(case.entry), setting.runtime, setting.dtype, setting.batch)
        if key not in written:
            log.info("writing %s", case.label)
            written[key] = case
            _write_file(case, case.entry.folder / f"file{len(written)}")
        same = written[key]
        case.file, case.written, case.why = same.file, same.written, same.why


def _write_file(case: Case, folder: Path) -> None:
    setting = case.setting
    file = folder / f"network{BACKENDS[setting.runtime].suffix}"
    task = {
        "do": "write",
        "model": str(case.entry.model),
        "format": setting.runtime,
        "precision": setting.precision,
        "quantize": setting.quantize,
        "images": case.entry.image_files() if setting.quantize else [],
        "batch": setting.batch,
        "threads": 1,
        "out": str(file),
    }
    worker = Worker(task, folder)
    try:
        case.written = worker.ask()
        case.file = file
    except WorkerError as error:
        case.why = f"could not be written: {error}"
    finally:
        worker.close()
