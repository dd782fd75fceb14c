"""Training with `torch.compile`: one graph for each size of the sampler."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.training.errors import TrainingError

Shape = tuple[int, ...]
"""(B, C, H, W) of a batch of images."""
BACKEND = "inductor"
"""torch's default."""


def full_batch_shapes(schedule: MultiScaleSchedule) -> frozenset[Shape]:
    """The shapes of a schedule's batches, except the smaller ones that end an epoch."""
    return frozenset((schedule.batch_size(size), 3, size, size) for size in schedule.sizes)


class Compiler:
    """Compiles a network for batches of certain shapes; others run eagerly.

    One graph for all shapes is slower; and a graph for a rare shape, such as that of the last batch
    of an epoch, takes longer to compile than it saves.
    """

    def __init__(self, network: nn.Module, shapes: Collection[Shape]) -> None:
        # In place, so that state keys stay; each graph is compiled on the first batch of its shape.
        self.shapes = frozenset(shapes)
        network.compile(backend=BACKEND, dynamic=False)

    @contextmanager
    def around(self, images: Tensor | None) -> Iterator[None]:
        """Run the network compiled in this context if images `[B, 3, H, W]` have such a shape."""
        compiled = images is not None and tuple(images.shape) in self.shapes
        limit = max(torch._dynamo.config.recompile_limit, len(self.shapes))
        with (
            torch._dynamo.config.patch(recompile_limit=limit),
            torch.compiler.set_stance("default" if compiled else "force_eager"),
        ):
            yield


def check_compiler() -> None:
    """Raise TrainingError if torch finds no compiler for a CPU's graphs."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise TrainingError(
            "compile needs a C++ compiler, such as g++, and torch finds none; the environment "
            "variable CXX can name one"
        ) from error
