"""The number formats of training: which one `auto` is, and bf16 as CPUs compute it best."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Precision = Literal["fp32", "bf16", "fp16"]
BF16_INSTRUCTIONS = "bf16 instructions, such as AVX-512 BF16"


def choose_precision(device: torch.device) -> tuple[Precision, str]:
    """What `auto` stands for on a device, and why: bf16 where the hardware multiplies it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} computes in it"
        return "fp32", f"{name} has no bf16"
    if device.type == "cpu":
        if has_bf16():
            return "bf16", "this CPU has instructions for it"
        return "fp32", f"this CPU has no {BF16_INSTRUCTIONS}"
    return "fp32", f"bf16 has not been measured on {device.type}"


def has_bf16() -> bool:
    """Whether this CPU has instructions that multiply in bf16; without them it is slow."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class FastKernels(TorchFunctionMode):
    """Inside a `with` block, replaces what bf16 autocast slows down on CPUs.

    Attention, and the input gradient of a depthwise convolution with a stride or dilation, compute
    in float32, for which oneDNN and torch have faster kernels (see docs/results.md).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                values = (x.float() if isinstance(x, Tensor) else x for x in args)
                return func(*values, **kwargs).bfloat16()
        if func is F.conv2d and is_depthwise(*args, **kwargs):
            return depthwise_conv(*args, **kwargs)
        return func(*args, **kwargs)


def is_depthwise(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a call of `torch.nn.functional.conv2d` has one group per channel, and no bias."""
    return 1 < groups == len(weight) == input.shape[1] and bias is None


def depthwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A depthwise convolution in bf16, whose slow gradient is computed in float32."""
    result: Tensor = DepthwiseConv.apply(input.bfloat16(), weight, stride, padding, dilation)
    return result


class DepthwiseConv(torch.autograd.Function):
    """`[B, C, H, W]` in bf16, weight `[C, 1, k, k]` in float32 -> `[B, C, H', W']` in bf16."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight.bfloat16(), None, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        stride, _, dilation = ctx.geometry

        def gradient_of(dtype: torch.dtype, *which: bool) -> Any:
            return torch.ops.aten.convolution_backward(
                gradient.to(dtype),
                # Of its input, the input's gradient needs the shape and the memory layout only.
                x if which[1] else torch.empty_like(x, dtype=dtype),
                weight.to(dtype),
                None,
                *ctx.geometry,
                False,
                [0, 0],
                len(weight),
                [*which, False],
            )

        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            fast = stride == dilation == (1, 1)
            of_x = gradient_of(torch.bfloat16 if fast else torch.float32, True, False)[0].bfloat16()
        if ctx.needs_input_grad[1]:
            of_weight = gradient_of(torch.bfloat16, False, True)[1].float()
        return of_x, of_weight, None, None, None
