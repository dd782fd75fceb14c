"""The results of `mobilevit benchmark`: rows, tables, and files with all figures."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mobilevit.commands.benchmark.checks import Accuracy, Agreement, Around
from mobilevit.commands.benchmark.plot import plot
from mobilevit.exports.spec import Precision
from mobilevit.models.config import TaskName
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import write_file
from mobilevit.utils.tables import markdown

JSON, TABLE, PLOT = "benchmark.json", "benchmark.md", "benchmark.svg"
"""The files in `--out`."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured."""

    device: str
    cores: int
    """That this process may use."""
    os: str
    python: str
    started: str
    """In UTC."""
    load_before: float | None
    """Load average of the minute before; None if the system does not report it."""
    load_after: float | None = None
    """Load average of the last minute, to which this work adds about 1."""

    @classmethod
    def here(cls) -> Machine:
        return cls(
            device=_processor(),
            cores=available_cores(),
            os=platform.platform(),
            python=platform.python_version(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            load_before=load_average(),
        )

    def __str__(self) -> str:
        text = f"{self.device}, {self.cores} cores, {self.os}, Python {self.python}, {self.started}"
        if self.load_before is None or self.load_after is None:
            return text
        return f"{text}; load {self.load_before:.1f} before, {self.load_after:.1f} at the end"


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, on average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The network of a row."""

    name: str
    task: TaskName
    source: str
    """Where the weights come from."""
    parameters: int | None
    macs: int | None
    """Multiply-accumulates for one image."""
    accuracy: Accuracy | None
    """Of the network in PyTorch at this size; None if it is quantized here."""
    end_to_end: bool
    """Whether preprocessing of values and postprocessing are part of it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a network is run."""

    runtime: str
    """`torch`, `torch-compile`, or a format."""
    precision: Precision
    quantize: str | None
    size: int
    batch: int
    threads: int

    @property
    def dtype(self) -> str:
        return self.quantize or self.precision


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of a batch."""

    warmup: int
    runs: int
    median_ms: float
    p90_ms: float
    min_ms: float
    cpu_ms: float
    """Median of processor time, over all threads."""
    ratio: float | None
    """To the first row that was timed: median over the rounds."""
    ratio_quartiles: tuple[float, float] | None
    cpu_ratio: float | None
    """Ratio of processor times, which depends less on the machine's other work."""


@dataclass(frozen=True, kw_only=True)
class Startup:
    """Costs that occur once."""

    opening_ms: float
    first_run_ms: float
    """Includes the work that the runtime has put off until then."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """The most that the process grew, without the runtime's own code."""

    opening_bytes: int | None
    """From opening to the end of the first run."""
    running_bytes: int | None
    """In the timed runs, weights included."""


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """The exported file; for PyTorch the weights."""

    bytes: int | None
    operations: int | None
    types: dict[str, int] | None
    """Operations by the type that they compute in."""
    placement: str | None
    """Which part of the graph the runtime delegates."""
    has_slow_kernels: bool
    """Whether operations run on kernels that are not made for this processor."""
    writing_s: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network in one runtime and setting. Unknown or unmeasured values are None."""

    model: ModelInfo
    setting: Setting
    version: str | None
    """Name and version of the runtime."""
    timing: Timing | None
    startup: Startup | None
    memory: MemoryUse
    file: FileInfo
    agreement: Agreement | None
    why: str
    """Why it was not timed; empty if it was."""

    @property
    def machine_was_busy(self) -> bool:
        """Whether one thread had to share its core with other processes."""
        if self.setting.threads != 1 or self.timing is None:
            return False
        return self.timing.cpu_ms < 0.9 * self.timing.median_ms


def _number(digits: int, scale: float = 1) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else f"{value * scale:.{digits}f}"


MS, MB = _number(2), _number(1, 1e-6)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All rows; `str()` gives tables in plain text, which are valid Markdown."""

    machine: Machine
    rows: tuple[Row, ...]
    around: tuple[Around, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 if nothing could be timed, or a runtime disagrees with PyTorch."""
        timed = any(row.timing for row in self.rows)
        return int(not timed or any(row.agreement and not row.agreement.good for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        notes = Footnotes()
        common = {name: text for name, text in COMMON.items() if len(set(map(text, self.rows))) < 2}
        setting = ", ".join(f"{name} {text(self.rows[0])}" for name, text in common.items())
        tables = [self._table(columns, common, notes) for columns in (TIMES, FILES)]
        texts = (
            str(self.machine),
            "Time of a batch in the network alone, or in all of an end-to-end file. "
            f"{'All rows: ' + setting + '. ' if setting else ''}Ratio: to the first row that was "
            "timed, median of the rounds. Cpu: processor time of all threads. MB: how much the "
            "process grew at most, to open the network and run it once, and in the timed runs.",
            tables[0],
            "MB: size of the file. Off by: largest difference in probability from the network in "
            "PyTorch; off, rms: root mean square of the difference of raw outputs, in their "
            "standard deviations. Same: images (pixels, anchors) with the same top class.",
            tables[1],
            self._around_table(),
            "\n".join((*notes.texts(), *self.notes)),
        )
        return "\n\n".join(
            text if text.startswith("|") or "\n" in text else textwrap.fill(text, 110)
            for text in texts
            if text
        )

    def _table(
        self, columns: Mapping[str, Column], common: Collection[str], notes: Footnotes
    ) -> str:
        """A table of the rows, without the columns in `common`, which are the same in all."""
        shown = {name: text for name, text in columns.items() if name not in common}
        rows: Iterable[Row] = self.rows
        if columns is FILES:  # one row for all numbers of threads
            opened = [row for row in self.rows if row.version is not None]
            files = {tuple(text(row) for text in list(FILES.values())[:5]): row for row in opened}
            rows = files.values()
        lines = [
            [*(text(row) for text in shown.values()), notes.marks(_row_notes(row, columns))]
            for row in rows
        ]
        return markdown((*shown, ""), lines, left=(0, 1, len(shown)))

    def _around_table(self) -> str:
        heads = ("around the network, ms", "px", "image", "framing", "values", "after it")
        rows = (
            (one.model, str(one.size), one.image, *map(MS, times))
            for one in self.around
            for times in [(one.frame_ms, one.values_ms, one.after_ms)]
        )
        return markdown(heads, rows)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        figures = json.dumps(self.to_json(), indent=1)
        for name, content in {JSON: figures, TABLE: str(self), PLOT: plot(self.rows)}.items():
            write_file(folder / name, content.rstrip() + "\n")


class Footnotes:
    """Texts below the tables, each once, and their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def marks(self, texts: Iterable[str]) -> str:
        numbers = [self._numbers.setdefault(text, len(self._numbers) + 1) for text in texts]
        return ", ".join(map(str, numbers))

    def texts(self) -> list[str]:
        return [f"{number}: {text}" for text, number in self._numbers.items()]


Column = Callable[[Row], str]


def _row_notes(row: Row, columns: Mapping[str, Column]) -> list[str]:
    if columns is FILES:
        types = ", ".join(f"{count} {name}" for name, count in (row.file.types or {}).items())
        notes = [f"operations: {types}"] if row.setting.quantize and types else []
        return [*notes, row.file.placement] if row.file.placement else notes
    notes = [row.why] if row.why else []
    if row.machine_was_busy:
        notes.append("the machine was busy: other processes took part of this one's core")
    if row.file.has_slow_kernels:
        notes.append("operations run on slow reference kernels; see below")
    if row.agreement is not None and not row.agreement.good:
        notes.append("DISAGREES with PyTorch; see below")
    return notes


def _timing(field: str) -> Column:
    return lambda row: MS(getattr(row.timing, field) if row.timing else None)


def _agreement(field: str) -> Column:
    def text(row: Row) -> str:
        value = getattr(row.agreement, field) if row.agreement else None
        return "-" if value is None else f"{value:.0e}"

    return text


def _accuracy(row: Row) -> str:
    known = row.model.accuracy
    return "-" if known is None else f"{100 * known.value:.1f} {known.metric}"


COMMON: dict[str, Column] = {
    "px": lambda row: str(row.setting.size),
    "batch": lambda row: str(row.setting.batch),
    "threads": lambda row: str(row.setting.threads),
    "precision": lambda row: row.setting.dtype,
}
"""Columns that are left out where all rows have the same value."""

TIMES: dict[str, Column] = {
    "model": lambda row: row.model.name,
    "runtime": lambda row: row.setting.runtime,
    **COMMON,
    "median ms": _timing("median_ms"),
    "p90": _timing("p90_ms"),
    "min": _timing("min_ms"),
    "ratio": _timing("ratio"),
    "cpu ms": _timing("cpu_ms"),
    "ratio of cpu": _timing("cpu_ratio"),
    "MB opening": lambda row: MB(row.memory.opening_bytes),
    "MB running": lambda row: MB(row.memory.running_bytes),
}

FILES: dict[str, Column] = {
    "model": lambda row: row.model.name,
    "in": lambda row: row.version or row.setting.runtime,
    **{name: text for name, text in COMMON.items() if name != "threads"},
    "M parameters": lambda row: _number(2, 1e-6)(row.model.parameters),
    "M MACs": lambda row: _number(0, 1e-6)(row.model.macs),
    "accuracy": _accuracy,
    "MB": lambda row: _number(2, 1e-6)(row.file.bytes),
    "operations": lambda row: _number(0)(row.file.operations),
    "off by": _agreement("difference"),
    "off, rms": _agreement("deviation"),
    "same": lambda row: "-" if row.agreement is None else f"{row.agreement.same:.1%}",
}
