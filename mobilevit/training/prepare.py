"""What to train on: options -> samples that are known to be readable."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from mobilevit.data.formats.folders import DataError, splits
from mobilevit.data.formats.torchvision import named_samples
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import MultiScaleSchedule, scales
from mobilevit.data.samples import FolderSamples, Samples
from mobilevit.data.shards.open import is_sharded, shard_splits
from mobilevit.data.validate import readable
from mobilevit.training.options import SamplerOptions


def samples(options: DataOptions, *, seed: int, console: Console) -> tuple[Samples, Samples]:
    """Find what to train on and what to validate on, and look at its files.

    Raises:
        DataError: there is nothing to train on, the two do not fit together, or files cannot be
            read; the message names all of them.
    """
    if options.name is not None:
        named = named_samples(options.name, options.root)
        to_train, to_validate = (len(part.labels) for part in named)
        counts = f"{to_train} to train, {to_validate} to validate"
        console.print(f"data: {options.name}, {counts}", highlight=False)
        return named
    if is_sharded(options.root, options.index):
        return _sharded(options, seed=seed, console=console)
    found = splits(options.root, val_fraction=options.val_fraction, seed=seed)
    console.print(f"data: {found.note}", highlight=False, soft_wrap=True)
    train, val = found.train, found.val
    if options.check or options.on_bad == "skip":
        train, val = readable(train, val, on_bad=options.on_bad)
    return FolderSamples(train), FolderSamples(val)


def _sharded(options: DataOptions, *, seed: int, console: Console) -> tuple[Samples, Samples]:
    """What to train on and what to validate on, in shards."""
    if options.on_bad != "error":
        raise DataError(
            f"{options.root}: bad files are left out when shards are written, by `mobilevit shard "
            "--on_bad skip`; data.on_bad is for folders of images"
        )
    found = shard_splits(
        options.root, index=options.index, val_fraction=options.val_fraction, seed=seed
    )
    console.print(f"data: {found.note}", highlight=False, soft_wrap=True)
    return found.train, found.val


def plan(
    options: SamplerOptions, *, samples: int, size: int, batch_size: int, seed: int
) -> MultiScaleSchedule:
    """The schedule of a run whose base is `batch_size` images of `size` pixels.

    Raises:
        ValueError: sizes that are no range around `size`.
    """
    if options.mode == "standard":
        if (options.min_size, options.max_size) != (None, None):
            raise ValueError("the standard sampler has one size: min_size and max_size have no use")
        sizes: Sequence[int] = (size,)
    elif options.mode == "multiscale":
        sizes = scales(
            options.min_size or round(0.625 * size),
            options.max_size or round(1.25 * size),
            size,
            count=options.scales,
            multiple=options.multiple,
        )
    else:
        raise ValueError(f"sampler.mode must be multiscale or standard, not {options.mode!r}")
    return MultiScaleSchedule(
        samples=samples,
        sizes=tuple(sizes),
        base_size=size,
        base_batch=batch_size,
        batch_rule=options.batch_rule,
        seed=seed,
    )
