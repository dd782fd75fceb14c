"""What to train on: options -> samples that are known to be readable."""

from __future__ import annotations

from collections.abc import Sequence

from mobilevit.data.sampler import MultiScaleSchedule, scales
from mobilevit.training.options import SamplerOptions


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
