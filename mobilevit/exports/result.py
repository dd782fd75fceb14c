"""What `mobilevit export` says of the file it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilevit.exports.backends.registry import FormatName
from mobilevit.exports.sensitivity import Trial
from mobilevit.exports.spec import Precision
from mobilevit.exports.verify import Verification

WEIGHTS = "weights "
"""How those of `types` begin that count weights, not operations."""
MOST_NAMES = 8
"""Up to so many layers are named one by one."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One figure of a network and of a file made of it, on the same images framed alike."""

    measure: str
    """`top-1`, `AP` or `mean IoU`."""
    pytorch: float
    """In [0, 1], as is the next."""
    file: float
    images: int
    """That were evaluated."""
    every: int
    """Of so many."""
    own_shape: float | None = None
    """PyTorch's figure on images that keep their shape, where the file takes them squashed."""

    @property
    def drop(self) -> float:
        """How many points the file is below PyTorch: 1 is from 90 % to 89 %."""
        return 100 * (self.pytorch - self.file)

    def __str__(self) -> str:
        """One line."""
        own = f" ({self.own_shape:.1%} in their own shape)" if self.own_shape is not None else ""
        of = f" of {self.every:,}" if self.every > self.images else ""
        return (
            f"{self.measure} {self.pytorch:.1%} in PyTorch{own}, {self.file:.1%} in the file, "
            f"{self.images}{of} images"
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that says what PyTorch says."""

    out: Path
    format: FormatName
    model: str
    source: str
    """Where the weights come from, in words."""
    precision: Precision
    quantize: str | None = None
    """Kind of quantisation, such as `int8`."""
    size: int
    """Bytes."""
    fp32_size: int | None = None
    """Bytes of the same file in fp32; None where this one is not quantised."""
    inputs: tuple[str, ...]
    """`image: uint8 [1, 256, 256, 3]`."""
    outputs: tuple[str, ...]
    nodes: int
    """Operations in the graph."""
    types: dict[str, int]
    """Operations by what they compute in; empty where that is all the same."""
    placement: str
    """Which share of the graph a runtime delegates, and what falls back; empty if it does not."""
    runtime: str
    """What ran it, such as `onnxruntime 1.32.0`."""
    seconds: float
    """That writing took (or searching), without the verification."""
    verification: Verification
    accuracy: Accuracy | None = None
    """Of PyTorch and the file on labelled images, where some were given."""
    kept: tuple[str, ...] = ()
    """Layers that stayed in float."""
    trials: tuple[Trial, ...] = ()
    """What was tried to find these."""
    notes: tuple[str, ...] = ()
    """What the file does otherwise than `predict`, or does not know."""

    @property
    def exit_code(self) -> int:
        """0: a file that fails the verification is an exception."""
        return 0

    @property
    def int8_share(self) -> float:
        """Share of operations that compute in 8 bits; weights that are only kept in such do not."""
        counts = {name: n for name, n in self.types.items() if not name.startswith(WEIGHTS)}
        eight = sum(count for name, count in counts.items() if name.startswith("int8"))
        return eight / max(1, sum(counts.values()))

    def __str__(self) -> str:
        """A few lines."""
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        kind = f"{self.precision}, {self.quantize}" if self.quantize else self.precision
        lines = [
            f"{self.model} ({self.source}) as {self.format}, {kind}: {self.out}, "
            f"{self.size / 1e6:.2f} MB, {self.nodes} operations" + (f" ({types})" if types else ""),
            *(f"  in:  {value}" for value in self.inputs),
            *(f"  out: {value}" for value in self.outputs),
            *([f"  {self.placement}"] if self.placement else []),
            f"  in {self.runtime} against PyTorch, {self.verification}",
            *([f"  {self.accuracy}"] if self.accuracy else []),
            *([self._quantised(self.fp32_size)] if self.fp32_size else []),
            *([f"  tried: {', '.join(map(str, self.trials))}"] if self.trials else []),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _quantised(self, whole: int) -> str:
        """One line; `whole` is the size in fp32."""
        some = ", ".join(self.kept[:MOST_NAMES])
        more = f" and {len(self.kept) - MOST_NAMES} more" if len(self.kept) > MOST_NAMES else ""
        kept = f"; in float: {some}{more}" if self.kept else ""
        named = [f"{n} {name}" for name, n in self.types.items() if name.startswith(WEIGHTS)]
        weights = f", {' and '.join(named)}" if named else ""
        return (
            f"  {self.int8_share:.0%} of the operations compute in int8{weights}; "
            f"{self.size / whole:.2f} of the fp32 file's {whole / 1e6:.2f} MB{kept}"
        )
