"""Which layers suffer from 8 bits, and how few of them must stay in float."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilevit.exports.prepare import Prepared
from mobilevit.exports.quantize import REACH, Equalised, refuse_float16
from mobilevit.exports.spec import ExportError
from mobilevit.exports.wrap import Raw, Whole

log = logging.getLogger(__name__)

PHOTOS = 16
"""On so many of the photos at most is the harm of each layer measured."""


def layers_of(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that can be quantised, by their names in the module."""
    found = module.named_modules()
    return {name: one for name, one in found if isinstance(one, nn.Conv2d | nn.Linear)}


def quantised_layers(prepared: Prepared) -> frozenset[str]:
    """Names of the layers that are to be quantised: all but those of `Quantization.keep`.

    Raises:
        ExportError: one that is to be kept does not exist, or the network computes in float16.
    """
    quantize, layers = prepared.request.quantize, frozenset(layers_of(prepared.module))
    assert quantize is not None
    refuse_float16(prepared)
    unknown = quantize.keep - layers
    if unknown:
        raise ExportError(
            f"there are no layers {', '.join(sorted(unknown))} to keep in float; there are: "
            f"{', '.join(sorted(layers))}"
        )
    return layers - quantize.keep


def ranking(prepared: Prepared) -> list[str]:
    """Order the layers by how much the network's answers suffer if that one alone is in 8 bits.

    As in a quantised file, a layer's weights have a range for each output channel, what it takes
    and gives one range for all, observed on the photos of `prepared.request.quantize`. The harm is
    the mean square of what changes in the logits (and in a detector's offsets), as a share of their
    variance.

    Args:
        prepared: the network, in float32.

    Returns:
        Names in `prepared.module.named_modules()`, the most harmful first.

    Raises:
        ExportError: there are no photos, or the network computes in float16.
    """
    refuse_float16(prepared)
    photos = prepared.calibration()
    module, layers = prepared.module, layers_of(prepared.module)
    with torch.inference_mode():
        ranges = _observed(module, layers, photos)
        few = photos[:: -(-len(photos) // PHOTOS)]
        if len({photo.shape for photo in few}) == 1:
            few = [torch.cat(few)]
        expected = [_logits(module, photo) for photo in few]
        harm = {}
        for name, layer in layers.items():
            with _in_int8(layer, *ranges[name]):
                found = [_logits(module, photo) for photo in few]
            harm[name] = _difference(expected, found)
    return sorted(harm, key=lambda name: harm[name], reverse=True)


Range = tuple[float, float]


def _logits(module: nn.Module, given: Tensor) -> list[Tensor]:
    """What a network says ahead of its answer."""
    if isinstance(module, Whole):
        said = module.form(module.pixels(given))
    else:
        said = module.form(given) if isinstance(module, Raw) else module(given)
    return [said] if isinstance(said, Tensor) else list(said)


def _observed(
    module: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], photos: Sequence[Tensor]
) -> dict[str, tuple[Range, Range]]:
    """The ranges of what each layer takes and gives."""
    ranges: dict[str, tuple[Range, Range]] = {}

    def observe(name: str, given: Tensor, said: Tensor) -> None:
        taken, gave = ranges.get(name, ((0.0, 0.0), (0.0, 0.0)))
        ranges[name] = (_wider(taken, given), _wider(gave, said))

    hooks = [
        layer.register_forward_hook(
            lambda _layer, given, said, name=name: observe(name, given[0], said)
        )
        for name, layer in layers.items()
    ]
    for photo in photos:
        _logits(module, photo)
    for hook in hooks:
        hook.remove()
    for name, one in module.named_modules():
        if isinstance(one, Equalised):
            ranges[f"{name}.conv"] = (ranges[f"{name}.conv"][0], REACH)
    return ranges


def _wider(old: Range, values: Tensor) -> Range:
    low, high = values.aminmax()
    return min(old[0], float(low)), max(old[1], float(high))


@contextmanager
def _in_int8(layer: nn.Conv2d | nn.Linear, taken: Range, gave: Range) -> Iterator[None]:
    """Let a layer round as in 8 bits."""
    weight = layer.weight
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    rounded = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127
    )
    layer.weight = nn.Parameter(rounded, requires_grad=False)
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, given: (_rounded(given[0], taken),)),
        layer.register_forward_hook(lambda _layer, _given, said: _rounded(said, gave)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        layer.weight = weight


def _rounded(values: Tensor, span: Range) -> Tensor:
    low, high = span
    scale = max(high - low, 1e-12) / 255
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)


def _difference(expected: Sequence[list[Tensor]], found: Sequence[list[Tensor]]) -> float:
    """Mean square of the differences as a share of the variance, summed over the outputs."""
    total = 0.0
    for outputs, others in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        truth, said = (torch.cat([part.flatten() for part in parts]) for parts in (outputs, others))
        total += float((said - truth).square().mean() / truth.var().clamp(min=1e-12))
    return total


@dataclass(frozen=True)
class Trial:
    """A file that was tried."""

    kept: int
    """Layers that stayed in float."""
    drop: float
    """What it loses."""

    def __str__(self) -> str:
        """A few words."""
        return f"{self.kept} in float: drop {self.drop:.3g}"


def least_float(
    ranked: Sequence[str], drop: Callable[[frozenset[str]], float], *, max_drop: float
) -> tuple[frozenset[str], list[Trial]]:
    """Find how few of the worst layers must stay in float.

    None is tried first, then the worst one, two, four and so on, up to all; then the numbers
    between the last that failed and the first that did. That is the least number where more layers
    in float never lose more.

    Args:
        ranked: names of layers, the most harmful first.
        drop: writes a file with these layers in float, and says how much it loses.
        max_drop: how much may be lost, in the unit of `drop`.

    Returns:
        The layers, and all that was tried, in that order.

    Raises:
        ExportError: even with all layers in float too much is lost.
    """
    trials: list[Trial] = []

    def passes(count: int) -> bool:
        lost = drop(frozenset(ranked[:count]))
        trials.append(Trial(count, lost))
        log.info("%s", trials[-1])
        return lost <= max_drop

    if passes(0):
        return frozenset(), trials
    failed, count = 0, 1
    while count < len(ranked) and not passes(count):
        failed, count = count, 2 * count
    if count >= len(ranked):
        count = len(ranked)
        if not passes(count):
            raise ExportError(
                f"even with all {count} layers in float the file loses {trials[-1].drop:.3g}, more "
                f"than {max_drop:g}: it is not the bits that lose it"
            )
    while count - failed > 1:
        middle = (failed + count) // 2
        if passes(middle):
            count = middle
        else:
            failed = middle
    return frozenset(ranked[:count]), trials
