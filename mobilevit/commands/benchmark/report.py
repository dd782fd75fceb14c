"""The results of `mobilevit benchmark`: rows, tables, and files with all figures."""

import json
import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mobilevit.commands.benchmark.plot import plot
from mobilevit.exports.spec import Precision
from mobilevit.models.config import TaskName
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import write_file
from mobilevit.utils.tables import markdown

JSON, TABLE, PLOT = "benchmark.json", "benchmark.md", "benchmark.svg"
"""The files in `--out`."""


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, on average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(kw_only=True)
class Machine:
    """This machine, where it was measured."""

    device: str = field(default_factory=_processor)
    cores: int = field(default_factory=available_cores)
    """That this process may use."""
    os: str = field(default_factory=platform.platform)
    python: str = field(default_factory=platform.python_version)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """In UTC."""
    load_before: float | None = field(default_factory=load_average)
    """Load average of the minute before; None if the system does not report it."""
    load_after: float | None = None
    """Load average of the last minute, to which this work adds about 1."""

    def __str__(self) -> str:
        text = f"{self.device}, {self.cores} cores, {self.os}, Python {self.python}, {self.started}"
        if self.load_before is None or self.load_after is None:
            return text
        return f"{text}; load {self.load_before:.1f} before, {self.load_after:.1f} at the end"


@dataclass(kw_only=True)
class Row:
    """A model in one runtime and setting. What is unknown or was not measured is None."""

    model: str
    """As it was given, without the size."""
    task: TaskName
    source: str
    """Where the weights come from."""
    end_to_end: bool
    """Whether normalization and postprocessing are part of it."""
    parameters: int | None = None
    macs: int | None = None
    """Multiply-accumulates for one image."""
    accuracy: float | None = None
    """In [0, 1], of the network in PyTorch at this size, or of the file; None if it is quantized
    here."""
    accuracy_metric: str | None = None
    """`top1`, `ap` or `miou`."""
    accuracy_origin: str | None = None

    runtime: str
    """`torch`, `torch-compile`, or a format."""
    version: str | None = None
    """Name and version of the runtime."""
    precision: Precision
    quantize: str | None
    size: int
    batch: int
    threads: int = 1

    warmup: int
    """Runs that are not counted."""
    runs: int = 0
    median_ms: float | None = None
    p90_ms: float | None = None
    min_ms: float | None = None
    cpu_ms: float | None = None
    """Median of the processor time, over all threads."""
    ratio: float | None = None
    """To the first row that was timed: median over the rounds."""
    ratio_quartiles: tuple[float, float] | None = None
    cpu_ratio: float | None = None
    """Ratio of processor times, which depends less on the machine's other work."""
    opening_ms: float | None = None
    first_run_ms: float | None = None
    """Includes the work that the runtime has put off until then."""
    opening_bytes: int | None = None
    """How much the process grew at most, without the runtime's own code: from opening to the end of
    the first run."""
    running_bytes: int | None = None
    """The same in the timed runs, weights included."""

    file_bytes: int | None = None
    """Of the exported file; for PyTorch of the weights."""
    writing_s: float | None = None
    operations: int | None = None
    types: dict[str, int] | None = None
    """Operations by the type that they compute in."""
    placement: str | None = None
    """Which part of the graph the runtime delegates."""
    has_slow_kernels: bool = False
    """Whether operations run on kernels that are not made for this processor."""

    difference: float | None = None
    """Largest difference in probability from the network in PyTorch, see
    `mobilevit.exports.verify.Verification`; None for new weights, whose probabilities mean
    nothing."""
    deviation: float | None = None
    """Of raw outputs: root mean square of the difference, in standard deviations of the output."""
    same: float | None = None
    """Fraction of images (pixels, anchors) with the same most probable class."""
    agrees: bool | None = None
    """Whether the difference, or for new weights the deviation, is within its bound."""

    resize_ms: float | None = None
    """Resizing and cropping one decoded image, by Pillow, on one thread."""
    normalize_ms: float | None = None
    """From its pixels to the network's tensor; None if that is part of the file."""
    postprocess_ms: float | None = None
    """From the outputs to the prediction, in PyTorch; None if that is part of the file, and for a
    detector with new weights."""

    why: str = ""
    """Why it was not timed; empty if it was."""

    @property
    def dtype(self) -> str:
        return self.quantize or self.precision

    @property
    def setting(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.runtime}, {self.dtype}, {threads}{batch}"

    def __str__(self) -> str:
        return f"{self.model}, {self.size} px, {self.setting}"

    def notes(self) -> list[str]:
        """What a reader of the tables should know about this row."""
        notes = [self.why] if self.why else []
        busy = self.cpu_ms and self.median_ms and self.cpu_ms < 0.9 * self.median_ms
        if self.threads == 1 and busy:
            notes.append("the machine was busy: other processes took part of this one's core")
        if self.agrees is False:
            notes.append("DISAGREES with PyTorch")
        if self.has_slow_kernels:
            notes.append("operations run on slow reference kernels")
        if self.placement:
            notes.append(self.placement)
        if self.quantize and self.types:
            types = ", ".join(f"{count} {name}" for name, count in self.types.items())
            notes.append(f"operations: {types}")
        return notes


class Column(NamedTuple):
    """A column of a table: a field of `Row`, and how its value is written."""

    head: str
    field: str
    format: str = ""
    scale: float = 1

    def text(self, row: Row) -> str:
        value = getattr(row, self.field)
        if value is None:
            return "-"
        return format(value if self.scale == 1 else self.scale * value, self.format)


SETTING = (
    Column("px", "size"),
    Column("batch", "batch"),
    Column("threads", "threads"),
    Column("precision", "dtype"),
)
"""Columns that are left out where all rows have the same value."""
TIMES = (
    Column("model", "model"),
    Column("runtime", "runtime"),
    *SETTING,
    Column("median ms", "median_ms", ".2f"),
    Column("p90", "p90_ms", ".2f"),
    Column("min", "min_ms", ".2f"),
    Column("ratio", "ratio", ".2f"),
    Column("cpu ms", "cpu_ms", ".2f"),
    Column("ratio of cpu", "cpu_ratio", ".2f"),
    Column("MB opening", "opening_bytes", ".1f", 1e-6),
    Column("MB running", "running_bytes", ".1f", 1e-6),
)
FILES = (
    Column("model", "model"),
    Column("in", "version"),
    *(column for column in SETTING if column.field != "threads"),
    Column("M parameters", "parameters", ".2f", 1e-6),
    Column("M MACs", "macs", ".0f", 1e-6),
    Column("accuracy", "accuracy", ".1%"),
    Column("MB", "file_bytes", ".2f", 1e-6),
    Column("operations", "operations"),
    Column("off by", "difference", ".0e"),
    Column("off, rms", "deviation", ".0e"),
    Column("same", "same", ".1%"),
    Column("resize ms", "resize_ms", ".2f"),
    Column("normalize", "normalize_ms", ".2f"),
    Column("postprocess", "postprocess_ms", ".2f"),
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All rows; `str()` gives tables in plain text, which are valid Markdown."""

    machine: Machine
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 if nothing could be timed, or a runtime disagrees with PyTorch."""
        timed = any(row.median_ms is not None for row in self.rows)
        return int(not timed or any(row.agrees is False for row in self.rows))

    def __str__(self) -> str:
        common = [one for one in SETTING if len(set(map(one.text, self.rows))) == 1]
        setting = ", ".join(f"{one.head} {one.text(self.rows[0])}" for one in common)

        def table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
            shown = [column for column in columns if column not in common]
            lines = [tuple(column.text(row) for column in shown) for row in rows]
            # A file is the same for all numbers of threads.
            return markdown([one.head for one in shown], dict.fromkeys(lines), left=(0, 1))

        texts = (
            str(self.machine),
            "Time of a batch in the network alone, or in all of an end-to-end file. "
            f"{'All rows: ' + setting + '. ' if setting else ''}Ratio: to the first row that was "
            "timed, median of the rounds. Cpu: processor time of all threads. MB: how much the "
            "process grew at most, to open the network and run it once, and in the timed runs.",
            table(TIMES, self.rows),
            "Accuracy: top-1, AP or mean IoU. MB: size of the file. Off by: largest difference in "
            "probability from the network in PyTorch; off, rms: root mean square of the difference "
            "of raw outputs, in their standard deviations. Same: images (pixels, anchors) with the "
            "same top class. Resize, normalize, postprocess: of one image, around the network.",
            table(FILES, (row for row in self.rows if row.version)),
            "\n".join(
                [f"{row}: {'; '.join(row.notes())}" for row in self.rows if row.notes()]
                + list(self.notes)
            ),
        )
        return "\n\n".join(
            text if text.startswith("|") or text == texts[-1] else textwrap.fill(text, 110)
            for text in texts
        )

    def write(self, folder: Path) -> None:
        figures = json.dumps(asdict(self), indent=1)
        for name, content in {JSON: figures, TABLE: str(self), PLOT: plot(self.rows)}.items():
            write_file(folder / name, content.rstrip() + "\n")
