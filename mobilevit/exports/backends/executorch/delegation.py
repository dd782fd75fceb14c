"""Which operations of an ExecuTorch program a delegate takes, and which run on portable kernels."""

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, fx
from torch.export import ExportedProgram

from mobilevit.exports.spec import ExportError

NOT_COMPUTED = ("getitem", "executorch_call", "quantize_", "dequantize_")
"""Nodes that compute nothing, or only change how numbers are stored."""


def count_operations(program: ExportedProgram, delegate: str) -> tuple[dict[str, int], str]:
    """Count the operations of an edge program after lowering.

    Returns:
        The number of operations by the type that they compute in, and how they are divided.

    Raises:
        ExportError: the delegate takes none.
    """
    modules = (module for _, module in program.graph_module.named_children())
    lowered = [getattr(module, "original_module", None) for module in modules]
    parts = [one.graph for one in lowered if isinstance(one, ExportedProgram)]
    if not parts:
        raise ExportError(f"{delegate} takes no operation of the network")
    taken = [one for graph in parts for one in _operations(graph)]
    left = list(_operations(program.graph))
    types = Counter(dtype for _, dtype in (*taken, *left))
    counts = sorted(Counter(name for name, _ in left).items())
    names = ", ".join(f"{n} {name}" for name, n in counts)
    return dict(types.most_common()), (
        f"{delegate} takes {len(taken) / types.total():.1%} of the operations, in {len(parts)} "
        f"part{'' if len(parts) == 1 else 's'}; portable kernels take {names or 'nothing'}"
    )


def name_of(node: fx.Node) -> str:
    """The name of a node's operation: `view_copy` of `aten.view_copy.default`."""
    names = getattr(node.target, "__name__", str(node.target)).split(".")
    return names[1] if len(names) > 2 else names[0]


def _operations(graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Name and type of each operation that computes a tensor.

    The type is that of its result, and int8 for layers whose inputs are dequantized just before.
    """
    for node in graph.nodes:
        name, value = name_of(node), node.meta.get("val")
        value = value[0] if isinstance(value, list | tuple) and value else value
        computes = node.op == "call_function" and not name.startswith(NOT_COMPUTED)
        if computes and isinstance(value, Tensor):
            sources = [name_of(one) for one in node.all_input_nodes if one.op == "call_function"]
            rounded = sources and all(one.startswith("dequantize_") for one in sources)
            int8 = rounded and name in ("convolution", "linear")
            yield name, "int8" if int8 else str(value.dtype).removeprefix("torch.")
