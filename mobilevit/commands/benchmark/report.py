"""The results of `mobilevit benchmark`: rows, tables, and files with all figures."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """This machine, when measuring begins; `load_after` is for the end."""
    return {
        "device": _processor(),
        "cores": available_cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": load_average(),
        "load_after": None,
    }


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
    """Over the rounds; None if there was a single one."""
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
    mean_difference: float | None = None
    """The same on average, which counts for quantized files."""
    deviation: float | None = None
    """Of raw outputs: root mean square of the difference, in standard deviations of the output."""
    same: float | None = None
    """Fraction of images with the same most probable class; in segmentation of pixels, in detection
    of anchors (in an end-to-end file of images, by their most probable box)."""
    agrees: bool | None = None
    """Whether the file is within the bounds of `mobilevit export`; for new weights, whether the
    deviation is within its own."""

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
        notes = [self.why, self.placement or ""]
        if self.threads == 1 and self.cpu_ms and self.cpu_ms < 0.9 * (self.median_ms or 0):
            notes.append("the machine was busy: other processes took part of this one's core")
        if self.agrees is False:
            mean = self.mean_difference
            by = f" (mean difference {mean:.2g})" if self.quantize and mean is not None else ""
            notes.append(f"DISAGREES with PyTorch{by}")
        if self.has_slow_kernels:
            notes.append("operations run on slow reference kernels")
        return [note for note in notes if note]


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
    Column("MB of file", "file_bytes", ".2f", 1e-6),
    Column("operations", "operations"),
    Column("difference", "difference", ".0e"),
    Column("deviation", "deviation", ".0e"),
    Column("same class", "same", ".1%"),
    Column("resize ms", "resize_ms", ".2f"),
    Column("normalize", "normalize_ms", ".2f"),
    Column("postprocess", "postprocess_ms", ".2f"),
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All rows; `str()` gives tables in plain text, which are valid Markdown."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        """1 if nothing could be timed, or a runtime disagrees with PyTorch."""
        timed = any(row.median_ms is not None for row in self.rows)
        return int(not timed or any(row.agrees is False for row in self.rows))

    def __str__(self) -> str:
        common = [one for one in SETTING if len(set(map(one.text, self.rows))) == 1]
        setting = (f"{one.head} {one.text(self.rows[0])}" for one in common)
        machine = (f"{key} {value}" for key, value in self.machine.items() if value is not None)

        def table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
            shown = [column for column in columns if column not in common]
            lines = [tuple(column.text(row) for column in shown) for row in rows]
            # A file is the same for all numbers of threads.
            return markdown([one.head for one in shown], dict.fromkeys(lines), left=(0, 1))

        parts = (
            ", ".join(machine),
            ", ".join(("All rows: median ms of a batch", *setting)),
            table(TIMES, self.rows),
            table(FILES, (row for row in self.rows if row.version)),
            "\n".join(f"{row}: {'; '.join(row.notes())}" for row in self.rows if row.notes()),
        )
        return "\n\n".join(part for part in parts if part)

    def write(self, folder: Path) -> None:
        figures = json.dumps(asdict(self), indent=1)
        for name, content in {JSON: figures, TABLE: str(self), PLOT: plot(self.rows)}.items():
            write_file(folder / name, content.rstrip() + "\n")
