"""Who does what in a program of ExecuTorch: a backend in its parts, portable kernels elsewhere."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram

KEEPING = ("getitem", "executorch_call", "quantize_", "dequantize_")
"""Nodes that compute nothing, or only change how numbers are kept."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a backend takes of a program, and what it leaves."""

    backend: str
    """Its name, such as `XNNPACK`."""
    parts: int
    """Stretches of the graph that it takes as a whole."""
    taken: int
    """Operations in those parts."""
    left: dict[str, int]
    """Operations outside them, by name."""
    taken_products: int
    """Multiplications (of convolutions, linear layers, products of matrices) in those parts."""
    left_products: int
    """And outside them."""

    @property
    def operations(self) -> int:
        """All of them."""
        return self.taken + sum(self.left.values())

    def __str__(self) -> str:
        """One line."""
        products = self.taken_products / max(1, self.taken_products + self.left_products)
        left = ", ".join(f"{number} {name}" for name, number in sorted(self.left.items()))
        return (
            f"{self.backend} takes {self.taken / max(1, self.operations):.1%} of the operations "
            f"and {products:.1%} of the multiply-adds, in {self.parts} "
            f"part{'' if self.parts == 1 else 's'}; portable kernels take {left or 'nothing'}"
        )


def share(program: ExportedProgram, backend: str) -> Share:
    """Count who does what in a lowered program.

    Args:
        program: of an edge program manager, after lowering.
        backend: what to call the one that it was lowered to.
    """
    graphs = parts(program)
    taken = [node for graph in graphs for node in operations(graph)]
    left = list(operations(program.graph))
    return Share(
        backend=backend,
        parts=len(graphs),
        taken=len(taken),
        left=dict(Counter(map(name_of, left))),
        taken_products=sum(map(_products, taken)),
        left_products=sum(map(_products, left)),
    )


def types(program: ExportedProgram) -> dict[str, int]:
    """Operations by what they compute in; empty where that is all the same."""
    graphs = [program.graph, *parts(program)]
    counts = Counter(_type(node) for graph in graphs for node in operations(graph))
    return dict(counts.most_common()) if len(counts) > 1 else {}


def parts(program: ExportedProgram) -> list[fx.Graph]:
    """The graphs that a backend takes."""
    modules = (module for _, module in program.graph_module.named_children())
    found = (getattr(module, "original_module", None) for module in modules)
    return [one.graph for one in found if isinstance(one, ExportedProgram)]


def operations(graph: fx.Graph) -> Iterator[fx.Node]:
    """Nodes that compute tensors."""
    for node in graph.nodes:
        tensor = node.op == "call_function" and _value(node) is not None
        if tensor and not name_of(node).startswith(KEEPING):
            yield node


def name_of(node: fx.Node) -> str:
    """`aten.view_copy.default` -> `view_copy`."""
    names = getattr(node.target, "__name__", str(node.target)).split(".")
    return names[1] if len(names) > 2 else names[0]


def _value(node: fx.Node) -> Tensor | None:
    """What a node gives, or the first part of it; None where that is no tensor."""
    value = node.meta.get("val")
    if isinstance(value, Sequence):
        value = next(iter(value), None)
    return value if isinstance(value, Tensor) else None


def _products(node: Any) -> int:
    """Multiplications whose products a node adds up; sizes that vary count as in the example."""
    name = name_of(node)
    if name in ("convolution", "linear"):
        depth = math.prod(map(_known, node.args[1].meta["val"].shape[1:]))
    elif name in ("mm", "bmm", "addmm"):
        depth = _known(node.args[name == "addmm"].meta["val"].shape[-1])
    else:
        return 0
    return depth * math.prod(map(_known, node.meta["val"].shape))


def _known(side: Any) -> int:
    """A side, of the example where it varies."""
    if isinstance(side, int):
        return side
    # Unlike int(side), this does not tie the graph to the example.
    symbols: Any = importlib.import_module("executorch.exir.sym_util")
    return int(symbols.eval_expr(side))


def _type(node: Any) -> str:
    """int8 where numbers are kept as such right ahead of a node and right behind it."""
    ahead = [one for one in node.all_input_nodes if one.op == "call_function"]
    behind = [
        user for one in node.users for user in (one.users if name_of(one) == "relu" else [one])
    ]
    if (
        ahead
        and behind
        and all(name_of(one).startswith("dequantize_") for one in ahead)
        and all(name_of(one).startswith("quantize_") for one in behind)
    ):
        return "int8"
    value = _value(node)
    assert value is not None
    return str(value.dtype).removeprefix("torch.")
