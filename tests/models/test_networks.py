"""What holds for every network: each variant under each head."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilevit.checkpoints.read import recognise
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import PointwiseConv
from mobilevit.models.registry import (
    HEADS,
    VARIANTS,
    build,
    defaults,
    list_models,
    split_name,
    task_of,
)
from mobilevit.models.segmentation import SegmentationLogits
from mobilevit.models.ssdlite import RawDetections, decode
from tests.numerics import assert_close, tensors_of

ONE_OF_EACH = [
    prefix + variant for prefix in HEADS for variant in ("mobilevit_xxs", "mobilevitv2_050")
]
LATER = {"output_stride": 8, "channels": 512, "aux": True, "align_corners": True}
"""DeepLabv3 on v1 in the authors' later code."""
REFERENCES: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {},
    "mobilevit_xs": {},
    "mobilevit_s": {},
    "mobilevit_s_2021": {},
    "mobilevitv2_050": {},
    "mobilevitv2_100": {},
    "mobilevitv2_200": {},
    "ssdlite_mobilevit_xxs": {},
    "ssdlite_mobilevit_s": {},
    "ssdlite_mobilevitv2_050": {},
    "deeplabv3_mobilevit_xxs_2021": {},
    "deeplabv3_mobilevit_xxs": LATER,
    "deeplabv3_mobilevit_s": LATER,
    "deeplabv3_mobilevitv2_050": {},
    "pspnet_mobilevitv2_050": {},
}
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("mobilevit_xxs", {}, 1_272_024),
    ("mobilevit_xs", {}, 2_317_848),
    ("mobilevit_s", {}, 5_578_632),
    ("mobilevitv2_050", {}, 1_370_593),
    ("mobilevitv2_075", {}, 2_866_009),
    ("mobilevitv2_100", {}, 4_901_841),
    ("mobilevitv2_125", {}, 7_478_089),
    ("mobilevitv2_150", {}, 10_594_753),
    ("mobilevitv2_175", {}, 14_251_833),
    ("mobilevitv2_200", {}, 18_449_329),
    ("mobilevit_xxs", {"features_only": True}, 924_784),
    ("mobilevit_xs", {"features_only": True}, 1_895_216),
    ("mobilevit_s", {"features_only": True}, 4_833_952),
    ("ssdlite_mobilevit_xxs", {}, 1_755_050),
    ("ssdlite_mobilevit_xs", {}, 2_742_042),
    ("ssdlite_mobilevit_s", {}, 5_738_826),
    ("deeplabv3_mobilevit_xxs", {}, 1_854_853),
    ("deeplabv3_mobilevit_xs", {}, 2_944_069),
    ("deeplabv3_mobilevit_s", {}, 6_357_941),
    ("deeplabv3_mobilevit_s", LATER, 8_687_690),
]
MILLIONS = {  # with ADE20K's 150 classes and without the auxiliary head, as the authors print them
    "deeplabv3": {50: 6.3, 75: 9.6, 100: 13.4, 125: 17.7, 150: 22.6, 175: 28.1, 200: 34.0},
    "pspnet": {50: 3.6, 75: 6.2, 100: 9.4, 125: 13.2, 150: 17.6, 175: 22.5},
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_built_from_its_name(name: str) -> None:
    head, variant = split_name(name)
    with torch.device("meta"):
        model = build(name)
        spelt_out = build(name, **defaults(name))
    assert head.prefix + variant == name == model.name == model.config.model
    assert task_of(name) == head.task == model.config.task
    assert model.config.num_classes == head.num_classes == head.count_classes(model.state_dict())
    assert model.config.preprocessing == head.preprocessing
    assert model.config.options == spelt_out.config.options == {}
    assert model.backbone.feature_info[-1].stride == defaults(name)["output_stride"]
    counting = {key for key in model.state_dict() if key.startswith(head.class_tensors)}
    with torch.device("meta"):
        others = build(name, num_classes=3).state_dict()
    assert counting == {
        key for key, x in model.state_dict().items() if x.shape != others[key].shape
    }
    modules = {key.partition(".")[0] for key, _ in model.named_parameters()} - {"backbone"}
    expected = modules - {"expand"} if head.task == "classification" else modules
    assert expected == modules & {*model.head_modules}


def test_every_name_is_listed_once() -> None:
    assert list_models() == [head + name for head in HEADS for name in VARIANTS]
    assert len(set(list_models())) == 4 * 10


@pytest.mark.parametrize(("name", "options", "parameters"), PARAMETERS)
def test_parameters_are_the_papers(name: str, options: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        assert count(build(name, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        (f"{head}_mobilevitv2_{width:03d}", value)
        for head, values in MILLIONS.items()
        for width, value in values.items()
    ],
)
def test_parameters_of_segmenters_are_the_authors(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=150)
    assert round((count(model) - count(model.aux)) / 1e6, 1) == millions


def computed(model: nn.Module, key: str, image: Callable[..., Tensor], batch: int) -> Tensor:
    """What the authors' code stored under this key."""
    if key.startswith("logits_"):
        height, width = map(int, key.removeprefix("logits_").split("x"))
        return model(image(height, width, batch))
    if key == "feature_out_l5_exp":
        return model.expand(model.backbone(image(96, 64))[-1])
    if key.startswith("feature_out_l"):
        return model.backbone(image(96, 64))[int(key.removeprefix("feature_out_l")) - 1]
    raw, anchors = model(image(320, 320)), model.anchors(320, 320)
    return {
        "confidences": raw.logits,
        "locations": raw.offsets,
        "anchors": anchors[None],
        "decoded": decode(raw.offsets, anchors),
    }[key]


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_are_the_authors(name: str, fused: bool, reference, tmp_path) -> None:
    """Every stored output, relative to its standard deviation."""
    theirs = reference(name)
    _, layout, _, tensors = recognise(theirs.tensors, tmp_path)
    head = HEADS[layout.head]
    ours = layout.to_ours(tensors)
    back = layout.from_ours(ours)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    model = build(
        name.removesuffix("_2021"), num_classes=head.count_classes(ours), **REFERENCES[name]
    ).eval()
    model.load_state_dict(ours)
    if fused:
        model = fuse(model)
    if head.task == "classification":
        model.backbone.out_indices = (0, 1, 2, 3, 4)  # the classifier takes the last of them
    outputs = {key: x for key, x in theirs.outputs.items() if not key.startswith("det_")}
    assert len(outputs) == {"classification": 10, "detection": 4, "segmentation": 2}[head.task] - (
        8 if name == "mobilevit_s_2021" else 0
    )
    with torch.inference_mode():
        for key, expected in outputs.items():
            result = computed(model, key, theirs.image, len(expected)).numpy()
            assert result.shape == expected.shape, key
            assert np.abs(result - expected).max() < 1e-4 * expected.std(), key


@pytest.mark.parametrize("size", [(1, 1), (33, 57), (250, 96)])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_size_gives_the_shapes_announced(
    name: str, size: tuple[int, int], busy: Callable[..., nn.Module]
) -> None:
    model = busy(name, num_classes=5)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        output = model(images)
        alone = model(images[:1])
    match output:
        case RawDetections():
            anchors = len(model.anchors(*size))
            shapes = [(2, anchors, 6), (2, anchors, 4)]
        case Tensor() if split_name(name)[0].task == "segmentation":
            shapes = [(2, 5, *size)]
        case _:
            shapes = [(2, 5)]
    assert [tuple(x.shape) for x in tensors_of(output)] == shapes
    for together, single in zip(tensors_of(output), tensors_of(alone), strict=True):
        assert together.isfinite().all()
        assert_close(together[:1], single, 1e-4)  # whatever else is in the batch


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_output_stride(name: str, stride: int) -> None:
    with torch.device("meta"):
        model = build(name, num_classes=3, output_stride=stride).eval()
        output = model(torch.rand(1, 3, 64, 96))
    assert model.backbone.feature_info[-1].stride == stride
    default = defaults(name)["output_stride"]
    assert model.config.options == ({} if stride == default else {"output_stride": stride})
    if split_name(name)[0].task == "segmentation":
        assert output.shape == (1, 3, 64, 96)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevit_xs", "mobilevitv2_100"])
def test_a_black_image_has_finite_logits(name: str) -> None:
    model = build(name, num_classes=7).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 256, 256)).isfinite().all()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_memory_layout_copies_export_and_fusing_keep_the_outputs(
    name: str, busy: Callable[..., nn.Module]
) -> None:
    model = busy(name, num_classes=5)
    images = torch.rand(2, 3, 72, 56)
    with torch.inference_mode():
        expected = tensors_of(model(images))
        contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        exported = torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        ).module()
        for other, inputs in (
            (pickle.loads(pickle.dumps(model)), images),
            (contiguous, images),
            (model, images.contiguous(memory_format=torch.channels_last)),
            (exported, images),
            (fuse(model), images),
            (fuse(fuse(model)), images),
        ):
            for found, value in zip(tensors_of(other(inputs)), expected, strict=True):
                assert_close(found, value, 5e-5)
        for found, value in zip(tensors_of(exported(images[:1])), expected, strict=True):
            assert_close(found, value[:1], 5e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no rule for attention
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "name", [name for name in list_models() if name in ONE_OF_EACH or name in VARIANTS]
)
def test_tools_for_modules_work(name: str, busy: Callable[..., nn.Module]) -> None:
    """Tracing with gradients, hooks with and without them, and vmap over single images."""
    model = busy(name, num_classes=5)
    images = torch.rand(2, 3, 64, 96)
    seen: dict[bool, list[Tensor]] = {}

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = (*inputs, *tensors_of(output))
        seen[torch.is_grad_enabled()] += [x for x in tensors if isinstance(x, Tensor)]

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    for grad in (False, True):
        seen[grad] = []
        with torch.set_grad_enabled(grad):
            expected = tensors_of(model(images))
    for handle in handles:
        handle.remove()
    assert len(seen[True]) > 2 * len(list(model.children()))
    for without, value in zip(seen[False], seen[True], strict=True):
        assert torch.equal(without, value.detach())

    traced = torch.jit.trace(model, images)
    batched = torch.func.vmap(lambda image: model(image[None]))(images)
    for found, single, value in zip(
        tensors_of(traced(images)), tensors_of(batched), expected, strict=True
    ):
        assert_close(found, value)
        assert_close(single[:, 0], value, 5e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilevit_xxs", {"fusion": False, "patch_sizes": (8, 4, 2)}),
        ("mobilevit_xxs", {"output_stride": 8}),
        ("mobilevitv2_050", {"output_stride": 8}),
        ("mobilevit_xxs", {"features_only": True, "out_indices": (1, 3)}),
    ],
)
def test_fusing_keeps_the_outputs_of_other_options(
    name: str, options: dict[str, Any], busy: Callable[..., nn.Module]
) -> None:
    model, images = busy(name, **options), torch.rand(2, 3, 72, 56)
    fused = fuse(model)
    with torch.inference_mode():
        for found, expected in zip(
            tensors_of(fused(images)), tensors_of(model(images)), strict=True
        ):
            assert_close(found, expected, 5e-5)
    if "features_only" in options:
        assert fused.feature_info == model.feature_info
        assert fused.feature_sizes(33, 57) == model.feature_sizes(33, 57)


def test_fusing_leaves_no_batch_norm_no_gradients_and_the_original_as_it_was() -> None:
    model = build("mobilevit_xxs")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fused = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not any(module.training for module in fused.modules())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_learns_even_from_one_image(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=5)
    for batch in (4, 1) if split_name(name)[0].task == "segmentation" else (4,):
        model.zero_grad()
        output = model(torch.rand(batch, 3, 64, 64))
        sum((x * torch.randn_like(x)).sum() for x in tensors_of(output)).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # one image's pooled map is a single value a channel, which is not normalized by itself
            assert batch == 1 or parameter.grad.any(), key


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if name[0] in "dp"])
def test_training_gives_auxiliary_logits_if_there_is_such_a_head(name: str) -> None:
    images = torch.rand(2, 3, 64, 96)
    output = build(name, num_classes=4, aux=True)(images)
    assert isinstance(output, SegmentationLogits)
    assert output.logits.shape == output.aux.shape == (2, 4, 64, 96)
    without = build(name, num_classes=4, aux=False)
    assert isinstance(without(images), Tensor)
    assert without.backbone.out_indices == (4,)
    assert isinstance(build(name, num_classes=4, aux=True).eval()(images), Tensor)


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("mobilevit_s", 0.02),
        ("mobilevitv2_100", 0.02),
        ("ssdlite_mobilevit_s", 0.01),
        ("deeplabv3_mobilevit_xs", 0.01),
        ("pspnet_mobilevitv2_050", 0.01),
    ],
)
def test_initial_weights_are_those_of_the_2021_code(name: str, linear: float) -> None:
    torch.manual_seed(0)
    model = build(name)
    pointwise = [module for module in model.modules() if isinstance(module, PointwiseConv)]
    assert len(pointwise) == (4 * (2 + 4 + 3) if "v2" in name else 0)
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            assert (module.weight == 1).all(), key
            assert (module.bias == 0).all(), key
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        assert module.bias is None or (module.bias == 0).all(), key
        if isinstance(module, nn.Conv2d | PointwiseConv):
            kernel = math.prod(module.weight.shape[2:])
            fan_out, fan_in = module.weight.shape[0] * kernel, module.weight.shape[1] * kernel
            # grouped or not; the SSD parts are Xavier's
            xavier = name.startswith("ssdlite") and not key.startswith("backbone")
            expected = math.sqrt(2 / (fan_in + fan_out if xavier else fan_out))
        else:
            expected = linear
        spread = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
        assert module.weight.std().item() == pytest.approx(expected, rel=spread), key
        assert abs(module.weight.mean().item()) < 0.1 * expected + expected * spread, key


def test_a_seed_fixes_the_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(build("mobilevit_xxs").state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
