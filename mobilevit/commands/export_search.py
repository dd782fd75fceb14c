"""The smallest quantised file that is accurate enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mobilevit.exports.accuracy import Evaluator
from mobilevit.exports.backends.registry import Format
from mobilevit.exports.prepare import Request, Written
from mobilevit.exports.result import Accuracy
from mobilevit.exports.sensitivity import Trial, least_float, ranking


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that was tried."""

    written: Written
    accuracy: Accuracy
    kept: frozenset[str] = frozenset()
    """Layers that stayed in float."""
    trials: tuple[Trial, ...] = ()
    """All that were tried on the way to it."""


def smallest(
    evaluate: Evaluator, kind: Format, request: Request, folder: Path, *, max_drop: float
) -> Found:
    """Quantise with as few layers in float as keep the accuracy.

    Args:
        evaluate: the network, and the images it is evaluated on.
        kind: of file.
        request: what is wanted of it; its quantisation is to int8.
        folder: an empty folder for the files that are tried; of those that are accurate enough it
            keeps all.
        max_drop: most points of accuracy that may be lost.

    Returns:
        The file; it may be less accurate than wanted, if no other is better.

    Raises:
        ExportError: such files cannot be made.
    """
    network, quantize = evaluate.network, request.quantize
    assert quantize is not None
    made: dict[frozenset[str], Found] = {}

    def write(kept: frozenset[str]) -> Found:
        path = folder / f"{len(made)}{kind.suffix}"
        asked = replace(request, quantize=replace(quantize, keep=kept))
        written = kind.write(network, asked, path)
        return Found(written=written, accuracy=evaluate.accuracy(path, kind), kept=kept)

    def drop(kept: frozenset[str]) -> float:
        found = made[kept] = write(kept)
        return found.accuracy.drop

    ranked = ranking(kind.prepare(network, request))
    kept, trials = least_float(ranked, drop, max_drop=max_drop)
    found = made[kept] if kept in made else write(kept)
    return replace(found, trials=tuple(trials))
