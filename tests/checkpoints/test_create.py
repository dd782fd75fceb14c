"""Networks with weights of model folders and of other layouts."""

import logging

import pytest
import torch

from mobilevit.checkpoints import authors, timm
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.models.registry import build


@pytest.fixture(scope="module")
def xxs():
    torch.manual_seed(0)
    return build("mobilevit_xxs", num_classes=10).state_dict()


@pytest.fixture
def authors_file(xxs, tmp_path):
    torch.save(authors.V1.from_ours(xxs), tmp_path / "mobilevit_xxs.pt")
    return tmp_path / "mobilevit_xxs.pt"


@pytest.mark.parametrize(
    ("name", "layout", "order", "assumed"),
    [
        ("mobilevit_xxs", authors.V1, "bgr", ()),
        ("mobilevit_s", timm.V1, "rgb", ("resize", "crop", "interpolation")),
        ("mobilevitv2_050", authors.V2, "rgb", ("channel_order",)),
        ("mobilevitv2_075", timm.V2, "rgb", ("channel_order", "resize", "crop", "interpolation")),
    ],
)
def test_variant_layout_and_preprocessing_are_read_from_the_tensors(
    name, layout, order, assumed, tmp_path
):
    model = build(name, num_classes=3)
    torch.save(layout.from_ours(model.state_dict()), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", classes=["a", "b", "c"])
    assert loaded.config.model == loaded.name == name
    assert loaded.config.preprocessing.channel_order == order
    assert loaded.config.preprocessing.assumed == assumed
    assert layout.name in loaded.config.source
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_stated_preprocessing_is_not_assumed(tmp_path):
    state = build("mobilevitv2_050", num_classes=3).state_dict()
    torch.save(authors.V2.from_ours(state), tmp_path / "v2.pt")
    config = load(tmp_path / "v2.pt", preprocessing={"channel_order": "bgr"}).config
    assert config.preprocessing.channel_order == "bgr"
    assert config.preprocessing.assumed == ()
    assert config.classes is None
    with pytest.raises(ValueError, match=r"no chanel_order; it has channel_order"):
        load(tmp_path / "v2.pt", preprocessing={"chanel_order": "bgr"})


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dicts_are_unwrapped(xxs, tmp_path, wrapper):
    torch.save({wrapper: timm.V1.from_ours(xxs), "epoch": 3}, tmp_path / "wrapped.pt")
    assert torch.equal(load(tmp_path / "wrapped.pt").head.bias, xxs["head.bias"])


def test_other_classes_give_a_new_head_with_a_warning(authors_file, xxs, caplog):  # A13
    with caplog.at_level(logging.WARNING):
        model = create_model("mobilevit_xxs", num_classes=7, weights=authors_file)
    assert "head.weight, head.bias" in caplog.text
    state = model.state_dict()
    changed = [key for key in state if not torch.equal(state[key], xxs.get(key, torch.empty(0)))]
    assert changed == ["head.weight", "head.bias"]
    assert state["head.weight"].shape[0] == 7
    assert model.config.preprocessing.channel_order == "bgr"


def test_naming_unnamed_classes_keeps_the_head_with_a_warning(authors_file, xxs, caplog):
    names = [f"class {number}" for number in range(10)]
    with caplog.at_level(logging.WARNING):
        model = create_model("mobilevit_xxs", classes=names, weights=authors_file)
    assert torch.equal(model.head.weight, xxs["head.weight"])
    assert "does not name its 10 classes" in caplog.text and "class 0, class 1" in caplog.text


def test_other_classes_are_an_error_without_a_new_head(authors_file):  # A13, A14
    with pytest.raises(CheckpointError, match=r"head\.weight and head\.bias are for 10 .* not 7"):
        create_model("mobilevit_xxs", num_classes=7, weights=authors_file, new_head=False)
    with pytest.raises(CheckpointError, match=r"10 classes, not 9.*background"):
        create_model("mobilevit_xxs", num_classes=9, weights=authors_file, new_head=False)


def test_other_names_give_a_new_head(xxs, tmp_path, caplog):
    model = create_model("mobilevit_xxs", classes=["a", "b"])
    save(model, tmp_path)
    again = create_model("mobilevit_xxs", classes=["a", "b"], weights=tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)
    assert create_model("mobilevit_xxs", weights=tmp_path).config.classes == ("a", "b")
    assert not caplog.text
    other = create_model("mobilevit_xxs", classes=["b", "a"], weights=tmp_path)
    assert "head.weight" in caplog.text
    assert not torch.equal(other.head.weight, model.head.weight)


def test_a_backbone_file_needs_a_new_classifier(xxs, tmp_path, caplog):
    path = tmp_path / "backbone.pt"
    tensors = {key: value for key, value in xxs.items() if not key.startswith(("head", "expand"))}
    torch.save(timm.V1.from_ours(tensors), path)
    with pytest.raises(CheckpointError, match="without a head; create_model"):
        load(path)
    model = create_model("mobilevit_xxs", num_classes=4, weights=path)
    assert "expand.conv.weight" in caplog.text and "head.bias" in caplog.text
    assert torch.equal(model.backbone.stem.conv.weight, xxs["backbone.stem.conv.weight"])
    with pytest.raises(CheckpointError, match="lacks expand"):
        create_model("mobilevit_xxs", num_classes=4, weights=path, new_head=False)


def test_a_backbone_alone_takes_a_classifiers_weights(authors_file, xxs, caplog):
    backbone = create_model("mobilevit_xxs", weights=authors_file, features_only=True)
    assert not caplog.text
    assert len(backbone.eval()(torch.rand(1, 3, 64, 64))) == 5
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, xxs[f"backbone.{key}"]), key


def test_options_of_a_model_folder_hold_unless_overridden(tmp_path):
    save(create_model("mobilevit_xxs", num_classes=2, patch_sizes=(8, 4, 2)), tmp_path)
    same = create_model("mobilevit_xxs", weights=tmp_path)
    assert same.config.options == {"patch_sizes": [8, 4, 2]} == same.config.options
    other = create_model("mobilevit_xxs", weights=tmp_path, patch_sizes=(2, 2, 2), dropout=0.0)
    assert other.config.options == {"dropout": 0.0}


def test_errors_name_the_tensors(authors_file, xxs, tmp_path):
    with pytest.raises(CheckpointError, match="holds mobilevit_xxs, not mobilevit_xs"):
        create_model("mobilevit_xs", weights=authors_file)
    with pytest.raises(CheckpointError, match=r"stem\.conv\.weight \[16, 3, 3, 3\] where .* 1, 3"):
        create_model("mobilevit_xxs", weights=authors_file, in_channels=1)
    theirs = timm.V1.from_ours(xxs)
    torch.save({**theirs, "extra.weight": torch.ones(1)}, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"no place .*extra\.weight"):
        load(tmp_path / "more.pt")
    del theirs["stages.3.1.norm.bias"]
    torch.save(theirs, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"less\.pt lacks backbone\.stage4\.1\.norm\.bias"):
        load(tmp_path / "less.pt")
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"of no known layout.*conv1\.weight"):
        load(tmp_path / "resnet.pt")


def test_classes_and_their_number_must_agree(authors_file):
    with pytest.raises(ValueError, match="2 class names for 3 outputs"):
        create_model("mobilevit_xxs", num_classes=3, classes=["a", "b"])
    with pytest.raises(ValueError, match="2 class names for 10 outputs"):
        load(authors_file, classes=["a", "b"])
    with pytest.raises(TypeError, match="colour"):
        create_model("mobilevit_xxs", colour="red")


def test_a_published_backbone_becomes_a_classifier(shared, caplog):
    path = shared / "data" / "weights" / "timm_mobilevit_xxs_backbone.pth"
    model = create_model("mobilevit_xxs", num_classes=5, weights=path)
    assert "new tensors" in caplog.text
    assert caplog.text.rstrip().endswith("head.weight, head.bias")
    assert model.config.preprocessing.channel_order == "rgb"


def test_a_classifiers_weights_become_the_backbone(tmp_path, caplog):
    classifier = create_model(
        "mobilevit_xxs", num_classes=9, output_stride=8, patch_sizes=(4, 4, 2)
    )
    save(classifier, tmp_path)
    with caplog.at_level(logging.WARNING):
        model = create_model("deeplabv3_mobilevit_xxs", num_classes=4, weights=tmp_path)
    assert model.config.options == {"patch_sizes": [4, 4, 2]}  # strides belong to the task
    assert "all of context, predict" in caplog.text
    assert model.config.preprocessing.resize_mode == "shortest_edge"
    for key, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], tensor), key
    caplog.clear()
    create_model("deeplabv3_mobilevit_xxs", classes=VOC_CLASSES, weights=tmp_path)
    assert "does not name its" not in caplog.text  # a file without that head has no such outputs
    back = tmp_path / "back"
    save(create_model("deeplabv3_mobilevit_xxs", num_classes=4, channels=64, aux=True), back)
    again = create_model("mobilevit_xxs", num_classes=3, weights=back)
    assert again.config.options == {}
    other = create_model("pspnet_mobilevit_xxs", num_classes=4, weights=back)
    assert other.config.options == {}


def test_other_classes_give_new_classifiers_of_positions(tmp_path, caplog):
    model = create_model("pspnet_mobilevitv2_050", num_classes=21)
    save(model, tmp_path)
    again = create_model("pspnet_mobilevitv2_050", num_classes=3, weights=tmp_path)
    changed = [
        key
        for key, tensor in again.state_dict().items()
        if not torch.equal(tensor, model.state_dict()[key])
    ]
    assert changed == ["predict.weight", "predict.bias", "aux.predict.weight", "aux.predict.bias"]
    assert all(key in caplog.text for key in changed)
    with pytest.raises(CheckpointError, match=r"predict.* are for 21 classes, not 20; is one of"):
        create_model("pspnet_mobilevitv2_050", num_classes=20, weights=tmp_path, new_head=False)
    assert create_model("pspnet_mobilevitv2_050").config.num_classes == 21


def test_an_auxiliary_head_can_be_left_out_and_added(tmp_path, caplog):
    model = create_model("deeplabv3_mobilevitv2_050", num_classes=3)
    save(model, tmp_path / "with")
    without = create_model("deeplabv3_mobilevitv2_050", weights=tmp_path / "with", aux=False)
    assert not caplog.text
    assert without.config.options == {"aux": False}
    assert torch.equal(without.predict.weight, model.predict.weight)
    save(without, tmp_path / "without")
    assert load(tmp_path / "without").aux is None
    added = create_model("deeplabv3_mobilevitv2_050", weights=tmp_path / "without", aux=True)
    assert "aux.conv.conv.weight" in caplog.text and "predict.weight" in caplog.text
    assert torch.equal(added.predict.weight, model.predict.weight)
