"""How much memory a network's activations take, found without running it."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network

STAGES = {
    "stem, stage1": ("backbone.stem", "backbone.stage1"),
    **{f"stage{number}": (f"backbone.stage{number}",) for number in (2, 3, 4, 5)},
}
"""Rows of a summary -> the parts of a network that each covers, in the order they run."""
HEAD = "head"
"""The last row: all that follows the backbone."""


class ActivationMemory(TorchDispatchMode):
    """Entered together with inference mode, follows tensors' bytes from birth to death."""

    def __init__(self, alive: int) -> None:
        """`alive` bytes were there before."""
        super().__init__()
        self.alive = alive
        self.peaks: dict[str, int] = {}
        self.begin("")

    def begin(self, stage: str, *_: object) -> None:
        """Book what follows under `stage`; a module's hook passes more, which is not used."""
        self.stage = stage
        self.peaks[stage] = self.alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator; memory that it returns and was not given is newly alive."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.scaled_dot_product_attention.default and result.is_meta:
            # Real kernels lay their answer out as the query, so that heads join without a copy.
            result = torch.empty_like(args[0])
        given, returned = _storages((args, kwargs)), _storages(result)
        for key in returned.keys() - given.keys():  # so neither views nor results in place
            size = returned[key].nbytes()
            self.alive += size
            weakref.finalize(returned[key], self._free, size)
        self.peaks[self.stage] = max(self.peaks[self.stage], self.alive)
        return result

    def _free(self, size: int) -> None:
        self.alive -= size


def _storages(tree: object) -> dict[int, torch.UntypedStorage]:
    """The memory behind the tensors in nested arguments or results, by identity."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {id(storage): storage for storage in storages}


def peak_activations(network: Network, images: Tensor) -> dict[str, int]:
    """The most bytes alive at once in each of `STAGES` and in the `HEAD`.

    `PEAK` of `describe` is the definition.

    Meta tensors take no memory; on other devices this runs the network, with the same answer.
    """
    network, memory = fuse(network), ActivationMemory(images.nbytes)
    for stage, paths in STAGES.items():
        network.get_submodule(paths[0]).register_forward_pre_hook(partial(memory.begin, stage))
    network.backbone.register_forward_hook(partial(memory.begin, HEAD))
    with torch.inference_mode(), memory:
        network(images)
    return memory.peaks
