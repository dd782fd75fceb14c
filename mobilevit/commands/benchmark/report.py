"""What `mobilevit benchmark` says: rows, tables, and files of all figures."""

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

from mobilevit.commands.bench_plot import plot
from mobilevit.commands.benchmark.checks import Accuracy, Agreement, Around
from mobilevit.exports.spec import Precision
from mobilevit.models.config import TaskName
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import write_file
from mobilevit.utils.tables import markdown

JSON, TABLE, PLOT = "benchmark.json", "benchmark.md", "benchmark.svg"
"""The files of `--out`."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured."""

    device: str
    """The processor."""
    cores: int
    """That this process may use."""
    os: str
    python: str
    started: str
    """Date and time, UTC."""
    load_before: float | None
    """Processes that wanted a core in the minute before; None where the system does not say."""
    load_after: float | None = None
    """In the last minute; one of them is this work."""

    @classmethod
    def here(cls) -> Machine:
        """This one, now."""
        return cls(
            device=_processor(),
            cores=available_cores(),
            os=platform.platform(),
            python=platform.python_version(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            load_before=load(),
        )

    def __str__(self) -> str:
        """One line."""
        text = f"{self.device}, {self.cores} cores, {self.os}, Python {self.python}, {self.started}"
        if self.load_before is None or self.load_after is None:
            return text
        return f"{text}; load {self.load_before:.1f} before, {self.load_after:.1f} at the end"


def load() -> float | None:
    """Processes that wanted a core in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network in one runtime under one setting. What is not known or not measured is None."""

    model: str
    task: TaskName
    source: str
    """Where the weights come from."""
    parameters: int | None
    macs: int | None
    """Multiply-accumulates for one image."""
    accuracy: Accuracy | None
    """Of the network in PyTorch, at this size; None where it is quantised here."""
    runtime: str
    """`torch`, `torch-compile`, or a format."""
    version: str | None
    """Name and version of what ran it."""
    precision: Precision
    quantize: str | None
    size: int
    """Side of the images in pixels."""
    batch: int
    threads: int
    whole: bool
    """Whether values' preprocessing and what follows the network are in it."""
    warmup: int
    """Runs ahead of those that count."""
    runs: int
    """That count."""
    median_ms: float | None
    """Of a batch; so the next."""
    p90_ms: float | None
    min_ms: float | None
    cpu_ms: float | None
    """Median of the processor time, over all threads."""
    ratio: float | None
    """To the first row that was timed: median over the rounds of each round's own."""
    ratio_quartiles: tuple[float, float] | None
    cpu_ratio: float | None
    """The same of processor time, which other processes' work changes less."""
    opening_ms: float | None
    first_ms: float | None
    """The first run, which does what a runtime puts off until then."""
    opening_memory_bytes: int | None
    """Most that the process grew by, from opening to the end of the first run, over what it had
    with the runtime loaded and the images in memory."""
    running_memory_bytes: int | None
    """The same of the runs that count; weights included."""
    file_bytes: int | None
    nodes: int | None
    """Operations in the file."""
    types: dict[str, int] | None
    """Operations by what they compute in."""
    placement: str | None
    """Which share of the graph the runtime delegates, and what falls back."""
    fallback: bool
    """Whether a part runs on kernels that are there for every machine, and slow."""
    writing_s: float | None
    """That making the file took."""
    agreement: Agreement | None
    """With the network in PyTorch."""
    why: str
    """Why it was not timed; empty where it was."""

    @property
    def kind(self) -> str:
        """Precision in one word."""
        return self.quantize or self.precision

    @property
    def busy(self) -> bool:
        """Whether one thread had to share its core with others."""
        if self.threads != 1 or self.median_ms is None or self.cpu_ms is None:
            return False
        return self.cpu_ms < 0.9 * self.median_ms


def _number(digits: int, scale: float = 1) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else f"{value * scale:.{digits}f}"


MS, MB = _number(2), _number(1, 1e-6)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured; `str()` gives tables in plain text, which are Markdown as well."""

    machine: Machine
    rows: tuple[Row, ...]
    around: tuple[Around, ...]
    notes: tuple[str, ...]
    """What is left out, and why."""

    @property
    def exit_code(self) -> int:
        """1 where nothing could be timed, or a file says something else than PyTorch."""
        timed = any(row.median_ms is not None for row in self.rows)
        return int(not timed or any(row.agreement and not row.agreement.good for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "machine": asdict(self.machine),
            "rows": [asdict(row) for row in self.rows],
            "around": [asdict(one) for one in self.around],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Times, files, what is around the networks, and the reasons for gaps."""
        reasons = Footnotes()
        common = {name: text for name, text in COMMON.items() if len(set(map(text, self.rows))) < 2}
        setting = ", ".join(f"{name} {text(self.rows[0])}" for name, text in common.items())
        tables = [self._table(columns, common, reasons) for columns in (TIMES, FILES)]
        texts = (
            str(self.machine),
            "Time of a batch in the network alone (of a whole file: in all that is in it). "
            f"{'In all rows: ' + setting + '. ' if setting else ''}Ratio: to the first row that "
            "was timed, median of the rounds. Cpu: processor time of all threads. MB: most that "
            "its process grew by, to open and run it once, and in the runs that count.",
            tables[0],
            "MB: of the file. Off by: largest difference in probability from the network in "
            "PyTorch as it was trained; off, rms: root mean square of the raw outputs' difference, "
            "in their standard deviations. Same: share of images (pixels, anchors) whose "
            "likeliest class is the same.",
            tables[1],
            self._around(),
            "\n".join((*reasons.texts(), *self.notes)),
        )
        return "\n\n".join(
            text if text.startswith("|") or "\n" in text else textwrap.fill(text, 110)
            for text in texts
            if text
        )

    def _table(
        self, columns: Mapping[str, Text], common: Collection[str], reasons: Footnotes
    ) -> str:
        """A table of the rows; columns that `common` says once for all are left out."""
        shown = {name: text for name, text in columns.items() if name not in common}
        rows: Iterable[Row] = self.rows
        if columns is FILES:  # threads are no matter of a file
            opened = [row for row in self.rows if row.version is not None]
            files = {tuple(text(row) for text in list(FILES.values())[:5]): row for row in opened}
            rows = files.values()
        lines = [
            [*(text(row) for text in shown.values()), reasons.marks(*_remarks(row, columns))]
            for row in rows
        ]
        return markdown((*shown, ""), lines, left=(0, 1, len(shown)))

    def _around(self) -> str:
        if not self.around:
            return ""
        heads = ("around the network, ms", "px", "photo", "framing", "values", "after it")
        return markdown(
            heads,
            (
                (
                    *(one.model, str(one.size), one.photo, MS(one.frame_ms)),
                    *(MS(one.values_ms), MS(one.after_ms)),
                )
                for one in self.around
            ),
        )

    def write(self, folder: Path) -> None:
        """Write the figures, the tables and a plot."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            JSON: json.dumps(self.to_json(), indent=1),
            TABLE: str(self),
            PLOT: plot(self.rows),
        }
        for name, content in contents.items():
            write_file(folder / name, content.rstrip() + "\n")


class Footnotes:
    """Texts that stand below a table, each once, and their numbers in it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers: dict[str, int] = {}

    def marks(self, *texts: str) -> str:
        """The numbers of these."""
        numbers = [self._numbers.setdefault(text, len(self._numbers) + 1) for text in texts]
        return ", ".join(map(str, numbers))

    def texts(self) -> list[str]:
        """All so far, with their numbers."""
        return [f"{number}: {text}" for text, number in self._numbers.items()]


def _remarks(row: Row, columns: Mapping[str, Text]) -> list[str]:
    """What is to be said of a row below a table."""
    if columns is FILES:
        kinds = ", ".join(f"{count} {kind}" for kind, count in (row.types or {}).items())
        computed = [f"operations: {kinds}"] if row.quantize and kinds else []
        return [*computed, *([row.placement] if row.placement else [])]
    remarks = [row.why] if row.why else []
    if row.busy:
        remarks.append("the machine was busy: other processes had a part of this one's core")
    if row.fallback:
        remarks.append("a part runs on slow kernels that are there for every machine; see below")
    if row.agreement is not None and not row.agreement.good:
        remarks.append("NOT what PyTorch says; see below")
    return remarks


def _accuracy(known: Accuracy | None) -> str:
    return "-" if known is None else f"{100 * known.value:.1f} {known.metric}"


Text = Callable[[Row], str]

COMMON: dict[str, Text] = {
    "px": lambda row: str(row.size),
    "batch": lambda row: str(row.batch),
    "threads": lambda row: str(row.threads),
    "precision": lambda row: row.kind,
}
"""Columns that are left out where all rows have the same."""

TIMES: dict[str, Text] = {
    "model": lambda row: row.model,
    "runtime": lambda row: row.runtime,
    **COMMON,
    "median ms": lambda row: MS(row.median_ms),
    "p90": lambda row: MS(row.p90_ms),
    "min": lambda row: MS(row.min_ms),
    "ratio": lambda row: MS(row.ratio),
    "cpu ms": lambda row: MS(row.cpu_ms),
    "ratio of cpu": lambda row: MS(row.cpu_ratio),
    "MB opening": lambda row: MB(row.opening_memory_bytes),
    "MB running": lambda row: MB(row.running_memory_bytes),
}

FILES: dict[str, Text] = {
    "model": lambda row: row.model,
    "in": lambda row: row.version or row.runtime,
    **{name: text for name, text in COMMON.items() if name != "threads"},
    "M parameters": lambda row: _number(2, 1e-6)(row.parameters),
    "M MACs": lambda row: _number(0, 1e-6)(row.macs),
    "accuracy": lambda row: _accuracy(row.accuracy),
    "MB": lambda row: _number(2, 1e-6)(row.file_bytes),
    "operations": lambda row: "-" if row.nodes is None else str(row.nodes),
    "off by": lambda row: _small(row.agreement.difference if row.agreement else None),
    "off, rms": lambda row: _small(row.agreement.deviation if row.agreement else None),
    "same": lambda row: "-" if row.agreement is None else f"{row.agreement.same:.1%}",
}


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"
