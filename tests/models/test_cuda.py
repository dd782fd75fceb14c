"""Networks on a GPU, as far as tensors without values show it, which need none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

from mobilevit.models.layers import SampleNorm
from mobilevit.models.registry import build


@pytest.mark.parametrize(
    "name",
    [
        "mobilevit_xxs",
        "mobilevitv2_050",
        "ssdlite_mobilevit_xxs",
        "deeplabv3_mobilevitv2_050",
        "pspnet_mobilevit_xxs",
    ],
)
def test_a_network_neither_waits_for_the_gpu_nor_copies_to_it(name: str) -> None:
    """So CUDA graphs can hold it: tensors without values refuse both."""
    network = build(name).eval()
    weights = network.state_dict()
    with FakeTensorMode():
        on_gpu = {
            key: torch.empty_strided(value.shape, value.stride(), device="cuda")
            for key, value in weights.items()
        }
        images = torch.empty(1, 3, 128, 128, device="cuda")
        outputs = torch.func.functional_call(network, on_gpu, images)
    for output in tree_leaves(outputs):
        assert isinstance(output, Tensor) and output.device.type == "cuda"


def test_a_sample_norm_keeps_the_layout() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        tokens = torch.empty(2, 4, 16, 8)
        assert SampleNorm(8)(tokens).stride() == tokens.stride()
