"""Training transforms and the data sets that use them."""

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.data.sampler import (
    EpochOrder,
    MultiScaleBatchSampler,
    MultiScaleSchedule,
    SampleKey,
)
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import AugmentOptions, ClassificationSet
from mobilevit.tasks.dataset import EvaluationSet
from mobilevit.utils.random import seeded
from tests.data.factories import labelled_images


@pytest.fixture
def samples(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(file)
    return labelled_images(tmp_path)


def training_set(samples, seed=0, **options):
    task_options = ClassificationOptions(augment=AugmentOptions(**options))
    return ClassificationSet(samples, Preprocessing(), task_options, seed=seed)


def keys(*indices, height=32, width=32, epoch=0):
    return [SampleKey(index, height, width, epoch) for index in indices]


def test_a_batch_has_its_keys_size_and_values_in_range(samples):
    images, labels = training_set(samples).__getitems__(keys(0, 3, 7, height=24, width=40))
    assert images.shape == (3, 3, 24, 40) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert labels.tolist() == [samples.labels[index] for index in (0, 3, 7)]


def test_randomness_is_a_function_of_seed_epoch_and_sample(samples):
    one = training_set(samples)
    torch.manual_seed(1)
    first = one.__getitems__(keys(0, 1))[0]
    torch.manual_seed(2)
    assert torch.equal(first, one.__getitems__(keys(0, 1))[0])
    assert torch.equal(first[1], one.__getitems__(keys(1))[0][0])  # whatever the batch around it
    assert not torch.equal(first, one.__getitems__(keys(0, 1, epoch=1))[0])
    assert not torch.equal(first, training_set(samples, seed=1).__getitems__(keys(0, 1))[0])


def test_the_callers_generator_is_left_alone(samples):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training_set(samples, mixup=0.2, rand_augment=2, erase=1.0).__getitems__(keys(0, 1, 2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("option", [{"rand_augment": 2}, {"erase": 1.0}, {"flip": 1.0}])
def test_each_augmentation_changes_images(samples, option):
    original = training_set(samples, flip=0.0).__getitems__(keys(*range(6)))[0]
    changed = training_set(samples, **{"flip": 0.0, **option}).__getitems__(keys(*range(6)))[0]
    assert not torch.equal(original, changed)
    if "flip" in option:
        assert torch.equal(original.flip(-1), changed)


@pytest.mark.parametrize("option", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_mixed_targets_are_shares(samples, option):
    mixed = training_set(samples, mix_probability=1.0, **option).__getitems__(keys(0, 1, 6, 7))
    original = training_set(samples).__getitems__(keys(0, 1, 6, 7))
    assert mixed[1].shape == (4, 2)
    assert torch.allclose(mixed[1].sum(1), torch.ones(4))
    assert not torch.equal(mixed[0], original[0])
    never = training_set(samples, mix_probability=0.0, **option).__getitems__(keys(0, 1, 6, 7))
    assert torch.equal(never[0], original[0])
    assert torch.equal(never[1].argmax(1), original[1])


def test_seeded_draws_differ_by_their_parts():
    drawn = set()
    for parts in ((0, 1), (1, 0), (0, 1, 0), (0,)):
        with seeded(*parts):
            drawn.add(float(torch.rand(())))
    assert len(drawn) == 4


def epoch_loader(samples, workers):
    order = EpochOrder(len(samples.labels))
    schedule = MultiScaleSchedule(
        samples=len(samples.labels), sizes=(32, 48), base_size=32, base_batch=3
    )
    batches = MultiScaleBatchSampler(order, schedule)
    return EpochLoader(training_set(samples), batches, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_what_is_left(samples, workers):
    uninterrupted = epoch_loader(samples, 0)
    uninterrupted.sampler.set_epoch(2)
    expected = list(uninterrupted)

    first = epoch_loader(samples, workers)
    first.sampler.set_epoch(2)
    batches = iter(first)
    taken = [next(batches), next(batches)]
    state = first.state_dict()

    second = epoch_loader(samples, workers)
    second.load_state_dict(state)
    second.sampler.set_epoch(2)
    rest = list(second)
    assert len(second) == len(expected) == len(taken) + len(rest)
    for (images, labels), (other_images, other_labels) in zip(taken + rest, expected, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    second.sampler.set_epoch(3)
    assert sum(len(labels) for _, labels in second) == len(samples.labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_is_named(samples, workers):
    from mobilevit.data.images import ImageError

    broken = samples.source(4)
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=broken.name):
        list(epoch_loader(samples, workers))
    with pytest.raises(ImageError, match=broken.name):
        list(
            EvaluationLoader(
                EvaluationSet(samples, Preprocessing().at(32)), batch_size=4, workers=workers
            )
        )


def test_evaluation_gives_every_sample_once_in_order(samples):
    loader = EvaluationLoader(
        EvaluationSet(samples, Preprocessing().at(32)), batch_size=5, workers=1
    )
    batches = [batch for (batch,) in loader]
    assert [index for batch in batches for index in batch.indices] == list(range(12))
    assert torch.cat([batch.targets for batch in batches]).tolist() == list(samples.labels)
    counts = [len(batch.images) for batch in batches]
    assert counts == [5, 5, 2] == [5] * (len(loader) - 1) + [2]
