"""Networks in 8 bits for LiteRT: torchao writes the roundings into the graph.

Convolutions and linear layers take, hold and give int8: weights with a symmetric range for each
output channel, activations with one range, measured on photos. So does what stands between two of
them: SiLU, shortcuts, maps side by side. Norms, attention and whatever makes an answer of logits
stay float32.
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
"""Operations that are quantised between layers that are."""

LEAST = 2.0**-12
"""Of a step between two values, so that no range is empty."""
GATE = 8.0
"""Beyond this, in both directions, a sigmoid of 8 bits does not change any more."""


def quantize_int8(prepared: PreparedModel, layers: Collection[str]) -> nn.Module:
    """Copy a prepared network for litert-torch, in 8 bits.

    Args:
        prepared: the network, its channels evened out, with photos to measure ranges on.
        layers: those to quantise, by their names in the module.

    Raises:
        ExportError: there are no photos.
    """
    photos = prepared.calibration()
    module = litert_graph(prepared.module)
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    with torch.no_grad():
        correct_biases(module, layers, photos)
        graph = torch.export.export(module, (prepared.example,)).module()
        write_out_silu(graph)
        observed = pt2e.prepare_pt2e(graph, Annotator(layers))
        for photo in photos:
            observed(photo)
        # Weights stay floats that are rounded in the graph: litert-torch reads no others.
        quantised: nn.Module = pt2e.convert_pt2e(observed, fold_quantize=False)
    return quantised


def litert_config() -> Any:
    """What tells litert-torch that a graph's roundings are of activations too."""
    quantize: Any = importlib.import_module("litert_torch.quantize.pt2e_quantizer")
    config: Any = importlib.import_module("litert_torch.quantize.quant_config")
    kind = quantize.get_symmetric_quantization_config(is_per_channel=True)
    return config.QuantConfig(pt2e_quantizer=quantize.PT2EQuantizer().set_global(kind))


def correct_biases(module: nn.Module, layers: Collection[str], photos: Sequence[Tensor]) -> None:
    """Take off the biases what rounding the weights adds to the outputs on average.

    Without this a channel's mean moves wherever inputs have a mean other than zero.

    Args:
        module: the network, which is changed.
        layers: names of those whose weights will be rounded.
        photos: what the module takes.
    """
    chosen = {
        name: layer
        for name, layer in quantizable_layers(module).items()
        if belongs_to(name, layers)
    }
    sums = {name: torch.zeros(layer.weight.shape[0]) for name, layer in chosen.items()}
    counts = dict.fromkeys(chosen, 0)

    errors = {name: rounding(layer.weight) for name, layer in chosen.items()}

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
            lambda layer, given, _said, name=name: observe(name, layer, given[0])
        )
        for name, layer in chosen.items()
    ]
    for photo in photos:
        module(photo)
    for hook in hooks:
        hook.remove()
    for name, layer in chosen.items():
        bias = -sums[name] / counts[name]
        if layer.bias is not None:
            bias += layer.bias
        layer.bias = nn.Parameter(bias, requires_grad=False)


def rounding(weight: Tensor) -> Tensor:
    """What is added to weights where they are rounded to 8 bits, with a range for each row."""
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=LEAST)
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round() * scale - weight


def write_out_silu(graph: GraphModule) -> None:
    """Have SiLU as the two operations that LiteRT makes of it, so that each can be rounded."""
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
    """Tells torchao what to round: a quantizer, as `prepare_pt2e` wants one."""

    def __init__(self, layers: Collection[str]) -> None:
        """`layers`: those to quantise, by their names in the module."""
        self.layers = layers
        self.kinds: Any = importlib.import_module("torchao.quantization.pt2e.quantizer")
        observers: Any = importlib.import_module("torchao.quantization.pt2e.observer")
        self.activation = self.kinds.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=observers.HistogramObserver.with_args(eps=LEAST),
        )
        self.weight = self.kinds.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=observers.PerChannelMinMaxObserver.with_args(eps=LEAST),
        )
        # LiteRT's kernels know no other range of a sigmoid.
        self.sigmoid = self._fixed(1 / 256, -128)
        self.gate = self._fixed(GATE / 128, 0)

    def _fixed(self, scale: float, zero: int) -> Any:
        return self.kinds.FixedQParamsQuantizationSpec(
            dtype=torch.int8,
            scale=scale,
            zero_point=zero,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Change nothing."""
        return model

    def prepare_obs_or_fq_callback(self, model: GraphModule, observers: Any) -> None:
        """Change no observers."""

    def validate(self, model: GraphModule) -> None:
        """Take any graph."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write into the graph what is to be rounded."""
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
                self._note(node, before, None if node in fused else after)
            elif node in fused.values():
                self._note(node, {}, self.activation)
            elif node in between and node.target is ATEN.cat.default:
                first, *others = node.args[0]
                same = self.kinds.SharedQuantizationSpec((first, node))
                self._note(node, {first: self.activation, **dict.fromkeys(others, same)}, same)
            elif node in between:
                after = self.sigmoid if node.target is ATEN.sigmoid.default else self.activation
                before = {given: self._given(given, layers) for given in node.args}
                self._note(node, before, after)
        return model

    def _given(self, node: Node, layers: Collection[Node]) -> Any:
        """How what a node gives is rounded."""
        if node.target is ATEN.sigmoid.default:
            return self.sigmoid
        gate = node in layers and _path(node).endswith(".gate")
        return self.gate if gate else self.activation

    def _note(self, node: Node, before: dict[Node, Any], after: Any) -> None:
        node.meta["quantization_annotation"] = self.kinds.QuantizationAnnotation(
            input_qspec_map=before, output_qspec=after, _annotated=True
        )


def _between(model: GraphModule, layers: Collection[Node]) -> set[Node]:
    """Operations that stand between quantised ones alone."""
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
    """Whether an operation becomes a part of the layer ahead of it."""
    before = node.args[0]
    if node.target not in (ATEN.relu.default, ATEN.relu_.default) or not isinstance(before, Node):
        return False
    return before.target in LAYERS and len(before.users) == 1


def _sources(node: Node) -> Iterator[Node | None]:
    """What a node takes, ahead of what only moves it; None stands for a number."""
    given = node.args[0] if node.target is ATEN.cat.default else node.args[:2]
    assert isinstance(given, list | tuple)
    for one in given:
        while isinstance(one, Node) and one.target in MOVING:
            one = one.args[0]
        yield one if isinstance(one, Node) else None


def _users(node: Node) -> Iterator[Node]:
    """What takes what a node gives, after what only moves it."""
    for user in node.users:
        if user.target in MOVING:
            yield from _users(user)
        else:
            yield user


def _path(node: Node) -> str:
    """The name of the module that a node is the work of."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path: str = list(stack.values())[-1][0]
    return path


def belongs_to(name: str, layers: Collection[str]) -> bool:
    """Whether a layer of LiteRT's form is one of some layers, or a part of one."""
    # A gate is what `equalize_channels` adds to a convolution.
    name = name.removesuffix(".gate") + ".conv" if name.endswith(".gate") else name
    return any(name == one or name.startswith(f"{one}.") for one in layers)
