"""The result of `mobilevit export`."""

from dataclasses import dataclass
from pathlib import Path

from mobilevit.exports.backends.base import FileSummary
from mobilevit.exports.quantize import Trial
from mobilevit.exports.spec import Precision
from mobilevit.exports.verify import Verification

WEIGHTS = "weights "
"""Prefix of the keys of `FileSummary.types` that count weights, not operations."""
MAX_NAMES = 8


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One metric of a network and of a file made from it, on the same images."""

    measure: str
    """`top-1`, `AP` or `mean IoU`."""
    pytorch: float
    """In [0, 1]."""
    file: float
    images: int
    available: int
    """Number of images in the data, of which `images` are evaluated."""
    own_shape: float | None = None
    """PyTorch's metric on images in their own aspect ratio, where the file takes squares."""

    @property
    def drop(self) -> float:
        """Points that the file loses: 1 is from 90 % to 89 %."""
        return 100 * (self.pytorch - self.file)

    def __str__(self) -> str:
        own = f" ({self.own_shape:.1%} without stretching)" if self.own_shape is not None else ""
        of = f" of {self.available:,}" if self.available > self.images else ""
        return (
            f"{self.measure} {self.pytorch:.1%} in PyTorch{own}, {self.file:.1%} in the file, "
            f"{self.images}{of} images"
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file that was written."""

    summary: FileSummary
    accuracy: Accuracy | None = None
    float_layers: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    """The files that were tried to find `float_layers`."""


@dataclass(frozen=True, kw_only=True)
class ExportResult(Candidate):
    """A file that agrees with PyTorch."""

    out: Path
    format: str
    model: str
    source: str
    """Where the weights come from."""
    precision: Precision
    quantize: str | None = None
    size: int
    """Bytes."""
    fp32_size: int | None = None
    """Bytes of the same file in fp32; None where this one is not quantized."""
    runtime: str
    seconds: float
    """Time to write it (or to search), without verification."""
    verification: Verification
    notes: tuple[str, ...] = ()
    """Differences from `predict`, and missing information."""

    @property
    def int8_share(self) -> float:
        """Share of operations that compute in int8; weights only stored in it do not count."""
        types = self.summary.types
        counts = {name: n for name, n in types.items() if not name.startswith(WEIGHTS)}
        int8 = sum(count for name, count in counts.items() if name.startswith("int8"))
        return int8 / max(1, sum(counts.values()))

    def __str__(self) -> str:
        summary = self.summary
        types = ", ".join(f"{count} {name}" for name, count in summary.types.items())
        mode = f"{self.precision}, {self.quantize}" if self.quantize else self.precision
        lines = [
            f"{self.model} ({self.source}) as {self.format}, {mode}: {self.out}, "
            f"{self.size / 1e6:.2f} MB, {summary.operations} operations"
            + (f" ({types})" if types else ""),
            *(f"  in:  {value}" for value in summary.inputs),
            *(f"  out: {value}" for value in summary.outputs),
            *([f"  {summary.placement}"] if summary.placement else []),
            f"  in {self.runtime} against PyTorch, {self.verification}",
            *([f"  {self.accuracy}"] if self.accuracy else []),
            *([self._quantized(self.fp32_size)] if self.fp32_size else []),
            *([f"  tried: {', '.join(map(str, self.trials))}"] if self.trials else []),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _quantized(self, fp32_size: int) -> str:
        layers = ", ".join(self.float_layers[:MAX_NAMES])
        more = len(self.float_layers) - MAX_NAMES
        layers += f" and {more} more" if more > 0 else ""
        counts = self.summary.types.items()
        weights = [f"{n} {name}" for name, n in counts if name.startswith(WEIGHTS)]
        return (
            f"  {self.int8_share:.0%} of the operations compute in int8"
            + (f", {' and '.join(weights)}" if weights else "")
            + f"; {self.size / fp32_size:.2f} of the fp32 file's {fp32_size / 1e6:.2f} MB"
            + (f"; in float: {layers}" if layers else "")
        )
