"""The network in training as `torch.compile` makes it: one graph for each size of the sampler."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.training.errors import TrainingError

Shape = tuple[int, ...]
"""Of a batch of images: B, C, H, W."""
BACKEND = "inductor"
"""What torch compiles with: its own usual one."""


def whole_batches(schedule: MultiScaleSchedule) -> frozenset[Shape]:
    """The shapes of a schedule's batches, but for those that end an epoch."""
    return frozenset((schedule.batch_size(size), 3, size, size) for size in schedule.sizes)


class Compiler:
    """Compiles a network for batches of certain shapes; on all others it runs as it was written.

    A graph that fits any shape computes more slowly, and one for each shape that comes, such as of
    the last batch of each epoch, takes longer to compile than it saves.
    """

    def __init__(self, network: nn.Module, shapes: Collection[Shape]) -> None:
        """Compile the network in place, at its first batch of each shape; its keys stay.

        Raises:
            TrainingError: there is no C++ compiler for the network's processor.
        """
        if next(network.parameters()).device.type == "cpu":
            _see_compiler()
        self.shapes = frozenset(shapes)
        network.compile(backend=BACKEND, dynamic=False)

    @contextmanager
    def around(self, images: Tensor | None) -> Iterator[None]:
        """Within it the network is compiled if these images `[B, 3, H, W]` have such a shape."""
        meant = images is not None and tuple(images.shape) in self.shapes
        most = max(torch._dynamo.config.recompile_limit, len(self.shapes))
        with (
            torch._dynamo.config.patch(recompile_limit=most),
            torch.compiler.set_stance("default" if meant else "force_eager"),
        ):
            yield


def _see_compiler() -> None:
    """See that torch finds a C++ compiler, ahead of the first batch.

    Raises:
        TrainingError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise TrainingError(
            "compile needs a C++ compiler, such as g++, and torch finds none; the environment "
            "variable CXX can name one"
        ) from error
