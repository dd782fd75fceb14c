"""The rows that `mobilevit benchmark` is to fill: each network in each runtime and setting."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.commands.benchmark.checks import Accuracy, images_for, macs
from mobilevit.commands.benchmark.measure import Measured, WorkerError, working
from mobilevit.commands.benchmark.models import AnySubject, FileSubject, Subject
from mobilevit.commands.benchmark.worker import PACKAGES
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.spec import Precision

log = logging.getLogger(__name__)

KINDS: dict[str, Backend] = {str(name): kind for name, kind in BACKENDS.items()}
"""Formats by the name of a runtime."""

TIMED = {"torch", "torch-compile", *PACKAGES}
"""Runtimes whose time is measured."""
if sys.platform != "darwin":
    TIMED.remove("coreml")  # interpreted: that says nothing of its time


@dataclass(kw_only=True)
class Place:
    """A subject, and where it lies for other processes."""

    subject: AnySubject
    folder: Path
    images: Sequence[Image.Image]
    accuracy: Accuracy | None
    weights: Path | None = None
    """The file of its weights; None of an exported file."""
    macs: int | None = None

    def __post_init__(self) -> None:
        """Keep it in its folder, and count what it costs."""
        if isinstance(self.subject, Subject):
            self.weights = self.subject.keep(self.folder)
            self.macs = macs(self.subject)
        else:
            self.folder.mkdir()

    def given(self, batch: int) -> Path:
        """The file of the images that it is run on."""
        path = self.folder / f"batch{batch}.npy"
        if not path.exists():
            np.save(path, images_for(self.subject, self.images, batch))
        return path

    def photos(self) -> list[str]:
        """Files of the photos that ranges are measured on."""
        paths = [self.folder / f"photo{index}.png" for index in range(len(self.images))]
        for path, image in zip(paths, self.images, strict=True):
            if not path.exists():
                image.save(path)
        return [str(path) for path in paths]


@dataclass(kw_only=True)
class Case:
    """One row to be."""

    place: Place
    runtime: str
    precision: Precision
    quantize: str | None
    batch: int
    threads: int
    timed: bool = True
    file: Path | None = None
    """None for PyTorch."""
    written: dict[str, Any] = field(default_factory=dict)
    """What the process says that wrote the file."""
    why: str = ""
    """Why it cannot be measured, if that is known beforehand."""
    answer: Path | None = None
    """The file that its outputs come to, if it is run."""
    found: Measured = field(default_factory=Measured)
    """What comes of it."""

    @property
    def label(self) -> str:
        """For progress."""
        kind = self.quantize or self.precision
        return f"{self.place.subject.name}, {self.place.subject.size} px, {self.runtime}, {kind}"

    def task(self) -> dict[str, Any]:
        """For `mobilevit.commands.benchmark.worker`."""
        return {
            "do": "run",
            "label": self.label,
            "subject": str(self.place.folder),
            "runtime": self.runtime,
            "precision": self.precision,
            "file": None if self.file is None else str(self.file),
            "input": str(self.place.given(self.batch)),
            "batch": self.batch,
            "threads": self.threads,
            "timed": self.timed,
            "answer": str(self.answer),
        }


def cases_of(
    place: Place,
    runtimes: Sequence[str],
    settings: Sequence[tuple[Precision, str | None]],
    batches: Sequence[int],
    threads: Sequence[int],
) -> Iterator[Case]:
    """The rows of one subject, in order; also those that cannot be."""
    subject = place.subject
    if isinstance(subject, FileSubject):
        facts = subject.metadata
        runtimes, settings = [subject.format.name], [(facts.precision, facts.quantize)]
    for runtime in runtimes:
        timed = runtime in TIMED
        for precision, quantize in settings:
            for batch in batches:
                for count in threads if timed else threads[:1]:
                    case = Case(
                        place=place,
                        runtime=runtime,
                        precision=precision,
                        quantize=quantize,
                        batch=batch,
                        threads=count,
                        timed=timed,
                    )
                    case.why = _refusal(case) or ""
                    yield case


def _refusal(case: Case) -> str | None:
    """Why a row cannot be, as far as that is known without trying."""
    subject = case.place.subject
    if isinstance(subject, FileSubject):
        case.file = Path(subject.name)
        return subject.refusal(case.batch)
    if case.quantize is None:
        return None
    if case.runtime not in KINDS or case.quantize not in KINDS[case.runtime].quantize_modes:
        return f"{case.runtime} has no {case.quantize}"
    if case.batch > 1:
        return "ranges are measured on one photo at a time: quantised files are timed at batch 1"
    return None


def write_files(cases: Sequence[Case]) -> None:
    """Write the files of all rows that need one, each in a process of its own."""
    done: dict[tuple[Any, ...], Case] = {}
    for case in cases:
        if case.why or case.file is not None or case.runtime not in KINDS:
            continue
        key = (id(case.place), case.runtime, case.precision, case.quantize, case.batch)
        if key not in done:
            log.info("writing %s", case.label)
            done[key] = case
            _write_file(case, case.place.folder / f"file{len(done)}")
        case.file, case.written, case.why = done[key].file, done[key].written, done[key].why


def _write_file(case: Case, folder: Path) -> None:
    file = folder / f"network{KINDS[case.runtime].suffix}"
    task = {
        "do": "write",
        "subject": str(case.place.folder),
        "format": case.runtime,
        "precision": case.precision,
        "quantize": case.quantize,
        "photos": case.place.photos() if case.quantize else [],
        "batch": case.batch,
        "threads": 1,
        "out": str(file),
    }
    try:
        with working(task, folder) as worker:
            case.written = worker.ask()
            case.file = file
    except WorkerError as error:
        case.why = f"could not be written: {error}"
