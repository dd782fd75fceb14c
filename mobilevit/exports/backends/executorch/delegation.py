"""Which operations of an ExecuTorch program a delegate takes, and which run on portable kernels."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram

NOT_COMPUTED = ("getitem", "executorch_call", "quantize_", "dequantize_")
"""Nodes that compute nothing, or only change how numbers are stored."""


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """How a program is divided."""

    delegate: str
    parts: int
    taken: int
    left: dict[str, int]
    """Operations outside the parts, by name."""
    taken_products: int
    """Multiplications (of convolutions, linear layers, matrix products) in those parts."""
    left_products: int

    @classmethod
    def of(cls, program: ExportedProgram, delegate: str) -> Delegation:
        """Count the operations of an edge program after lowering."""
        graphs = subgraphs(program)
        taken = [node for graph in graphs for node in operations(graph)]
        left = list(operations(program.graph))
        return cls(
            delegate=delegate,
            parts=len(graphs),
            taken=len(taken),
            left=dict(Counter(map(name_of, left))),
            taken_products=sum(map(_products, taken)),
            left_products=sum(map(_products, left)),
        )

    @property
    def operations(self) -> int:
        return self.taken + sum(self.left.values())

    def __str__(self) -> str:
        products = self.taken_products / max(1, self.taken_products + self.left_products)
        left = ", ".join(f"{number} {name}" for name, number in sorted(self.left.items()))
        return (
            f"{self.delegate} takes {self.taken / max(1, self.operations):.1%} of the operations "
            f"and {products:.1%} of the multiply-adds, in {self.parts} "
            f"part{'' if self.parts == 1 else 's'}; portable kernels take {left or 'nothing'}"
        )


def count_types(program: ExportedProgram) -> dict[str, int]:
    """Operations by the type that they compute in; empty if all have the same."""
    graphs = [program.graph, *subgraphs(program)]
    counts = Counter(_type(node) for graph in graphs for node in operations(graph))
    return dict(counts.most_common()) if len(counts) > 1 else {}


def subgraphs(program: ExportedProgram) -> list[fx.Graph]:
    """The graphs that a delegate takes."""
    modules = (module for _, module in program.graph_module.named_children())
    lowered = (getattr(module, "original_module", None) for module in modules)
    return [one.graph for one in lowered if isinstance(one, ExportedProgram)]


def operations(graph: fx.Graph) -> Iterator[fx.Node]:
    """Nodes that compute tensors."""
    for node in graph.nodes:
        computes = node.op == "call_function" and _value(node) is not None
        if computes and not name_of(node).startswith(NOT_COMPUTED):
            yield node


def name_of(node: fx.Node) -> str:
    """The name of a node's operation: `view_copy` of `aten.view_copy.default`."""
    names = getattr(node.target, "__name__", str(node.target)).split(".")
    return names[1] if len(names) > 2 else names[0]


def _value(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    if isinstance(value, Sequence):
        value = next(iter(value), None)
    return value if isinstance(value, Tensor) else None


def _products(node: Any) -> int:
    """Multiplications of a node; dynamic sizes count as in the example."""
    name = name_of(node)
    if name in ("convolution", "linear"):
        depth = math.prod(map(_known, node.args[1].meta["val"].shape[1:]))
    elif name in ("mm", "bmm", "addmm"):
        depth = _known(node.args[name == "addmm"].meta["val"].shape[-1])
    else:
        return 0
    return depth * math.prod(map(_known, node.meta["val"].shape))


def _known(side: Any) -> int:
    """A side; if it is dynamic, that of the example."""
    if isinstance(side, int):
        return side
    # Unlike int(side), this does not specialize the graph to the example.
    symbols: Any = importlib.import_module("executorch.exir.sym_util")
    return int(symbols.eval_expr(side))


def _type(node: Any) -> str:
    """int8 where all inputs are dequantized directly before a node, all results quantized after."""
    inputs = [one for one in node.all_input_nodes if one.op == "call_function"]
    users = [
        user for one in node.users for user in (one.users if name_of(one) == "relu" else [one])
    ]
    if (
        inputs
        and users
        and all(name_of(one).startswith("dequantize_") for one in inputs)
        and all(name_of(one).startswith("quantize_") for one in users)
    ):
        return "int8"
    value = _value(node)
    assert value is not None
    return str(value.dtype).removeprefix("torch.")
