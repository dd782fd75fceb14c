"""Int8 networks for LiteRT: torchao inserts the rounding into the graph.

Convolutions and linear layers take, store and return int8: weights with a symmetric range per
output channel, activations with one range, measured on calibration images. So does what lies
between two of them: SiLU, shortcuts, concatenations. Norms, attention and post-processing stay in
float32.

ai-edge-quantizer is as accurate on equalized networks, but XNNPACK splits its files into many
parts, and they are slower; docs/export_quantize.md has the figures.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from mobilevit.exports.backends.litert.rewrite import litert_graph
from mobilevit.exports.quantize import quantizable_layers
from mobilevit.exports.wrap import PreparedModel
from mobilevit.utils.quantization import fake_quantize_weight

ATEN = torch.ops.aten

LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
MOVING = frozenset(
    {
        ATEN.flatten.using_ints,
        ATEN.permute.default,
        ATEN.reshape.default,
        ATEN.transpose.int,
        ATEN.view.default,
        ATEN.view_as.default,
    }
)
"""Operations that compute nothing."""

BETWEEN = frozenset(
    {
        ATEN.add.Tensor,
        ATEN.cat.default,
        ATEN.mul.Tensor,
        ATEN.relu.default,
        ATEN.relu_.default,
        ATEN.sigmoid.default,
    }
)
"""Operations that are quantized between quantized layers."""

MIN_SCALE = 2.0**-12
"""Of int8 values, so that no range is empty."""
GATE_RANGE = 8.0
"""Beyond this, in both directions, an int8 sigmoid does not change."""


def quantize_int8(prepared: PreparedModel, layers: Collection[str]) -> nn.Module:
    """Copy a prepared network for litert-torch, quantized.

    Args:
        prepared: the network, equalized, with calibration images.
        layers: names of the layers to quantize.

    Raises:
        ExportError: there are no images.
    """
    images = prepared.calibration()
    module = litert_graph(prepared.module)
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    with torch.no_grad():
        correct_biases(module, layers, images)
        graph = torch.export.export(module, (prepared.example,)).module()
        decompose_silu(graph)
        observed = pt2e.prepare_pt2e(graph, Annotator(layers))
        for image in images:
            observed(image)
        # Weights stay floats that the graph rounds, which is what litert-torch reads.
        quantized: nn.Module = pt2e.convert_pt2e(observed, fold_quantize=False)
    return quantized


def litert_config() -> Any:
    """Tells litert-torch that a graph rounds activations too."""
    quantize: Any = importlib.import_module("litert_torch.quantize.pt2e_quantizer")
    config: Any = importlib.import_module("litert_torch.quantize.quant_config")
    kind = quantize.get_symmetric_quantization_config(is_per_channel=True)
    return config.QuantConfig(pt2e_quantizer=quantize.PT2EQuantizer().set_global(kind))


def correct_biases(module: nn.Module, layers: Collection[str], images: Sequence[Tensor]) -> None:
    """Subtract from the biases what rounding the weights adds to the outputs on average.

    Otherwise the mean of a channel changes wherever the mean of its inputs is not zero.

    Args:
        module: the network, which is changed.
        layers: names of the layers whose weights will be rounded.
        images: inputs of the module.
    """
    quantized = {
        name: layer
        for name, layer in quantizable_layers(module).items()
        if belongs_to(name, layers)
    }
    sums = {name: torch.zeros(layer.weight.shape[0]) for name, layer in quantized.items()}
    counts = dict.fromkeys(quantized, 0)

    errors = {
        name: fake_quantize_weight(layer.weight, MIN_SCALE) - layer.weight
        for name, layer in quantized.items()
    }

    def observe(name: str, layer: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        error = errors[name]
        if isinstance(layer, nn.Conv2d):
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            moved = F.conv2d(x, error, None, *geometry).mean((2, 3))  # type: ignore[arg-type]
        else:
            moved = F.linear(x, error).flatten(0, -2)
        sums[name] += moved.sum(0)
        counts[name] += len(moved)

    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, _y, name=name: observe(name, layer, inputs[0])
        )
        for name, layer in quantized.items()
    ]
    for image in images:
        module(image)
    for hook in hooks:
        hook.remove()
    for name, layer in quantized.items():
        bias = -sums[name] / counts[name]
        if layer.bias is not None:
            bias += layer.bias
        layer.bias = nn.Parameter(bias, requires_grad=False)


def decompose_silu(graph: GraphModule) -> None:
    """Write SiLU as the two operations that LiteRT makes of it, so that each can be quantized."""
    for node in list(graph.graph.nodes):
        if node.target not in (ATEN.silu.default, ATEN.silu_.default):
            continue
        with graph.graph.inserting_before(node):
            gate = graph.graph.call_function(ATEN.sigmoid.default, (node.args[0],))
            product = graph.graph.call_function(ATEN.mul.Tensor, (node.args[0], gate))
        for new in (gate, product):
            new.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


class Annotator:
    """Tells torchao what to round: a quantizer for `prepare_pt2e`."""

    def __init__(self, layers: Collection[str]) -> None:
        """Take the names of the layers to quantize."""
        self.layers = layers
        self.specs: Any = importlib.import_module("torchao.quantization.pt2e.quantizer")
        observers: Any = importlib.import_module("torchao.quantization.pt2e.observer")
        self.activation = self.specs.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=observers.HistogramObserver.with_args(eps=MIN_SCALE),
        )
        self.weight = self.specs.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=observers.PerChannelMinMaxObserver.with_args(eps=MIN_SCALE),
        )
        # The only range that LiteRT's sigmoid supports.
        self.sigmoid = self._fixed(1 / 256, -128)
        self.gate = self._fixed(GATE_RANGE / 128, 0)

    def _fixed(self, scale: float, zero: int) -> Any:
        return self.specs.FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=scale,
            zero_point=zero,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Return the graph unchanged."""
        return model

    def prepare_obs_or_fq_callback(self, model: GraphModule, observers: Any) -> None:
        """Leave the observers unchanged."""

    def validate(self, model: GraphModule) -> None:
        """Accept any graph."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the nodes to quantize."""
        layers = {
            node
            for node in model.graph.nodes
            if node.target in LAYERS and belongs_to(_path(node), self.layers)
        }
        between = _between(model, layers)
        fused = {node.args[0]: node for node in between if _fuses(node)}
        for node in model.graph.nodes:
            if node in layers:
                after = self.gate if _path(node).endswith(".gate") else self.activation
                before = {node.args[0]: self.activation, node.args[1]: self.weight}
                self._annotate(node, before, None if node in fused else after)
            elif node in fused.values():
                self._annotate(node, {}, self.activation)
            elif node in between and node.target is ATEN.cat.default:
                first, *others = node.args[0]
                same = self.specs.SharedQuantizationSpec((first, node))
                self._annotate(node, {first: self.activation, **dict.fromkeys(others, same)}, same)
            elif node in between:
                after = self.sigmoid if node.target is ATEN.sigmoid.default else self.activation
                before = {arg: self._input_spec(arg, layers) for arg in node.args}
                self._annotate(node, before, after)
        return model

    def _input_spec(self, node: Node, layers: Collection[Node]) -> Any:
        """How the result of a node is rounded."""
        if node.target is ATEN.sigmoid.default:
            return self.sigmoid
        gate = node in layers and _path(node).endswith(".gate")
        return self.gate if gate else self.activation

    def _annotate(self, node: Node, before: dict[Node, Any], after: Any) -> None:
        node.meta["quantization_annotation"] = self.specs.QuantizationAnnotation(
            input_qspec_map=before, output_qspec=after, _annotated=True
        )


def _between(model: GraphModule, layers: Collection[Node]) -> set[Node]:
    """Operations whose inputs and users are all quantized."""
    found = {node for node in model.graph.nodes if node.target in BETWEEN}
    while True:
        wrong = {
            node
            for node in found
            if not all(one in layers or one in found for one in (*_sources(node), *_users(node)))
        }
        if not wrong:
            return found
        found -= wrong


def _fuses(node: Node) -> bool:
    """Whether an operation is fused into the layer ahead of it."""
    before = node.args[0]
    if node.target not in (ATEN.relu.default, ATEN.relu_.default) or not isinstance(before, Node):
        return False
    return before.target in LAYERS and len(before.users) == 1


def _sources(node: Node) -> Iterator[Node | None]:
    """A node's inputs, looking through operations that only move them; None for a number."""
    inputs = node.args[0] if node.target is ATEN.cat.default else node.args[:2]
    assert isinstance(inputs, list | tuple)
    for one in inputs:
        while isinstance(one, Node) and one.target in MOVING:
            one = one.args[0]
        yield one if isinstance(one, Node) else None


def _users(node: Node) -> Iterator[Node]:
    """A node's users, looking through operations that only move its result."""
    for user in node.users:
        if user.target in MOVING:
            yield from _users(user)
        else:
            yield user


def _path(node: Node) -> str:
    """The name of the module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path: str = list(stack.values())[-1][0]
    return path


def belongs_to(name: str, layers: Collection[str]) -> bool:
    """Whether a layer of the LiteRT graph is one of some layers, or a part of one."""
    # `GatedConv` adds a gate to an equalized convolution.
    name = name.removesuffix(".gate") + ".conv" if name.endswith(".gate") else name
    return any(name == one or name.startswith(f"{one}.") for one in layers)
