"""Opening a data set of any format, for any task, to train on and to evaluate on."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import EVERYTHING, Issue, ReadOptions
from mobilevit.data.formats.labels.torchvision import read_torchvision
from mobilevit.data.formats.registry import parse
from mobilevit.data.options import DataOptions
from mobilevit.data.shards.open import is_sharded, open_shards
from mobilevit.data.shards.samples import ShardSamples
from mobilevit.data.shards.tar import TarShard
from mobilevit.data.splits import (
    Division,
    Samples,
    Splits,
    divide,
    select_evaluation_split,
    split_datasets,
)
from mobilevit.data.validate import (
    MAX_LISTED,
    Depth,
    Report,
    blocked_images,
    dataset_issues,
    validate,
)
from mobilevit.utils.devices import available_cores
from mobilevit.utils.progress import map_parallel

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Samples)
OnBad: TypeAlias = Literal["error", "skip"]


def open_splits(
    samples_type: type[S],
    data: DataOptions,
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Splits[S]:
    """Find, or make, samples to train on and to evaluate on; see `divide`.

    Args:
        samples_type: the task's kind of samples.
        data: where they are. Images and annotations that cannot be used raise an error that names
            them or, with `on_bad="skip"`, are left out with a warning after all are decoded.
        classes: the classes in order, matched by name; by default `data.classes`.
        seed: of what is held out where there is no split to evaluate on.

    Raises:
        DataError: nothing is recognised, or it cannot be trained or evaluated on.
    """
    division = _divide(samples_type, data, classes=classes or data.class_names, seed=seed)
    used = {split: division.splits[split] for split in (division.train, division.val) if split}
    used = used or division.splits
    report = _validate(data, used, division.issues)
    left = select_usable(report, used, data.on_bad)
    # Not the report's warnings: those are of images and masks that are used.
    if unused := dict.fromkeys(i for i in dataset_issues(used) if i.severity == "warning"):
        log.warning("%s: not all of it is used:\n%s", data.root, _listing(list(unused)))
    assert division.train is not None and division.val is not None  # else there were issues
    lost = sum(map(len, used.values())) - sum(map(len, left.values()))
    note = f"{division.note}; {lost} images left out" if lost else division.note
    return Splits(left[division.train], left[division.val], note)


def open_evaluation(
    samples_type: type[S], data: DataOptions, *, classes: Sequence[str] | None = None
) -> S:
    """Find samples to evaluate on: those of `data.split`, else those next to train, else all.

    `classes` are the classes in order, such as a model's, matched by name.

    Raises:
        DataError: as for `open_splits`; or a class is not among `classes`.
    """
    parts = _parts(samples_type, data, classes or data.class_names, split=data.split)
    name, samples = select_evaluation_split(parts, data.split)
    if data.split is None and name in (EVERYTHING, "train", "trainval"):
        log.info("%s: all %d images are evaluated, trained on or not", data.root, len(samples))
    samples = _without_blocked(_in_order(samples, classes or data.class_names), data)
    issues = Samples.check_split(samples, name or "the data set")
    report = _validate(data, {name: samples}, issues)
    return select_usable(report, {name: samples}, data.on_bad)[name]


def check_dataset(
    samples_type: type[Samples],
    data: DataOptions,
    *,
    seed: int = 0,
    quick: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Report all that is wrong or unusual: what `open_splits` refuses is an error here.

    Args:
        samples_type: as for `open_splits`, and so are `data` and `seed`.
        quick: read headers and file ends instead of decoding everything.
        workers: threads; by default as many as there are cores.

    Raises:
        DataError: nothing is recognised.
    """
    division = _divide(samples_type, data, classes=data.class_names, seed=seed)
    issues, note = division.issues, division.note
    depth: Depth = "headers" if quick else "decode"
    sharded = [part for part in division.splits.values() if isinstance(part, ShardSamples)]
    if shards := [shard for part in sharded for shard in part.images.shards]:
        problems = map_parallel(
            lambda shard: shard.problem(quick=False),
            shards,
            "checking shards",
            workers=workers or available_cores(),
            progress=progress,
        )
        wrong = [problem for problem in problems if problem is not None]
        issues = [*issues, *wrong]
        if any(isinstance(shard, TarShard) for shard in shards):  # tables have no index
            note = f"{note}; all shards read and compared with their index"
        depth = "annotations" if quick or wrong else "decode"
    return validate(
        data.root,
        division.splits,
        issues=issues,
        note=note,
        depth=depth,
        workers=workers,
        progress=progress,
    )


def _parts(
    samples_type: type[S],
    data: DataOptions,
    classes: Sequence[str] | None,
    *,
    split: str | None = None,
) -> dict[str, S]:
    """The samples of each split, with classes of their own; of tables, `split` alone if given."""
    labels = samples_type.content == "labels"
    if labels and data.name is None and is_sharded(data.root, data.index):
        if data.on_bad != "error":
            raise DataError(
                f"{data.root}: bad files are left out when shards are written, by `mobilevit shard "
                "--on_bad skip`; data.on_bad is for folders of images"
            )
        parts: Any = open_shards(data.root, index=data.index, split=split)
        return parts
    if data.name is not None:
        return split_datasets(samples_type, read_torchvision(data.name, data.root))
    names = None if classes is None else tuple(classes)
    options = ReadOptions(samples_type.content, names, data.ignore)
    return split_datasets(samples_type, parse(data.root, options, data.format))


def _divide(
    samples_type: type[S], data: DataOptions, *, classes: Sequence[str] | None, seed: int
) -> Division[S]:
    parts = _parts(samples_type, data, classes)
    # Before anything is held out: an image left out here may be the only one of a class.
    parts = {
        name: _without_blocked(_in_order(samples, classes), data) for name, samples in parts.items()
    }
    return divide(parts, val_fraction=data.val_fraction, seed=seed)


def _in_order(samples: S, classes: Sequence[str] | None) -> S:
    if classes is None or samples.dataset.classes_from_options:
        return samples
    return samples.relabel(classes)


def _without_blocked(samples: S, data: DataOptions) -> S:
    """Leave out images whose annotations cannot be used, if `data.on_bad` is "skip"."""
    blocked = blocked_images(samples.dataset)
    left = [i for i, image in enumerate(samples.indices.tolist()) if image not in blocked]
    if data.on_bad == "error" or len(left) == len(samples):
        return samples
    issues = [issue for issue in samples.dataset.issues if issue.image in blocked]
    lost = len(samples) - len(left)
    log.warning("%s: %d images left out:\n%s", data.root, lost, _listing(issues))
    return samples.subset(left)


def _validate(data: DataOptions, splits: Mapping[str, S], issues: Sequence[Issue]) -> Report:
    """What `validate` finds before training or evaluation."""
    depth: Depth = "headers" if data.check else "annotations"
    if data.on_bad == "skip":  # to leave images out, all bad ones must be known first
        depth = "decode"
    # Images in shards are examined by `mobilevit shard` and `mobilevit check`.
    examined = {name: s for name, s in splits.items() if not isinstance(s, ShardSamples)}
    return validate(data.root, examined, issues=issues, depth=depth, warnings=False)


def select_usable(report: Report, splits: Mapping[str, S], on_bad: OnBad) -> dict[str, S]:
    """The samples without unusable ones, or an error about these.

    `report` is that of `validate` on the splits. With `on_bad="skip"`, samples are left out and a
    warning is logged.

    Raises:
        DataError: blocking issues are not skipped or not skippable; or no sample is left.
    """
    blocking = report.select_issues("blocking")
    fatal = [issue for issue in blocking if not issue.skippable]
    if fatal or (blocking and on_bad == "error"):
        counts = Counter(issue.category for issue in blocking)
        summary = ", ".join(f"{category}: {count}" for category, count in counts.items())
        advice = "" if fatal else "; mend them, or leave them out by --data.on_bad skip"
        # Issues of the data set first: those of its images may follow from them.
        listing = _listing(fatal + [issue for issue in blocking if issue.skippable])
        raise DataError(f"{report.root}: cannot be used as it is ({summary}){advice}:\n{listing}")
    if errors := report.select_issues("error"):
        log.warning("%s: %d annotations are wrong:\n%s", report.root, len(errors), _listing(errors))
    if not blocking:
        return dict(splits)
    lost = sum(len(report.unusable[name]) for name in splits)
    log.warning(
        "%s: %d issues skipped, %d images left out:\n%s",
        report.root, len(blocking), lost, _listing(blocking),
    )  # fmt: skip
    left: dict[str, S] = {}
    for name, samples in splits.items():
        unusable = report.unusable[name]
        left[name] = samples.subset(i for i in range(len(samples)) if i not in unusable)
        if not len(left[name]):
            raise DataError(f"{report.root}: none of its {len(samples)} images can be used")
        remaining = left[name].used_classes()
        if gone := [one for one in samples.used_classes() if one not in remaining]:
            log.warning("%s: no image is left of: %s", report.root, ", ".join(gone))
    return left


def _listing(issues: Sequence[Issue]) -> str:
    lines = [f"  {issue}" for issue in issues[:MAX_LISTED]]
    if len(issues) > MAX_LISTED:
        lines.append(f"  ... and {len(issues) - MAX_LISTED} more; `mobilevit check` lists them all")
    return "\n".join(lines)
