"""Write a foreign dataset in our raw layout."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tqdm import tqdm

from bonemet_auto.convert.foreign import ForeignCase, ForeignDataset
from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.files import require_file, write_text
from bonemet_auto.images import Volume, read_instances, strip_ending, write_volume
from bonemet_auto.schema import (
    POSITIVE_CLASS_NAME,
    CaseLabels,
    DatasetInfo,
    FailedCase,
    read_json,
    write_json,
)

OTHER_CLASS_NAME = "other"

UNKNOWN_CLASSES = {OTHER_CLASS_NAME: 0, POSITIVE_CLASS_NAME: 1}
"""Of a dataset that does not tell where its lesions come from: every source is null."""

MOST_INSTANCES = np.iinfo(np.uint16).max

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Neighbours that make one component: all 26."""

UInt16Array = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Converted:
    """What a conversion has written, and what it could not."""

    cases: int
    lesions: int
    failed: list[FailedCase]


@dataclass(frozen=True)
class Classes:
    """Our classes by name, and our class of each of their values; None: the source is unknown."""

    labels: dict[str, int]
    of_value: dict[int, int | None]


def convert_dataset(source: ForeignDataset, out: Path, classes: Classes) -> Converted:
    """Write `out` in our raw layout: links to the scans, instance maps, and one JSON per case.

    Maps of classes become instances by connected components (26 neighbours) within each class;
    maps of instances are linked. Cases that cannot be read are left out and listed. `out` appears
    when it is complete.

    Args:
        source: the dataset to convert.
        out: folder to make; must be absent or empty.
        classes: as `choose_classes` gives them.

    Raises:
        UsageError: `out` is in use.
    """
    with dataset_folder(out) as partial:
        outcomes = [
            _attempt(case, source, classes, partial)
            for case in tqdm(source.cases, "Converting", unit="case", disable=None)
        ]
        failed = [outcome for outcome in outcomes if isinstance(outcome, FailedCase)]
        bad = {case.case for case in failed}
        n_training = sum(not case.is_test and case.case not in bad for case in source.cases)
        write_description(partial, source.name, classes.labels, n_training)
    lesions = sum(outcome for outcome in outcomes if isinstance(outcome, int))
    return Converted(len(outcomes) - len(failed), lesions, failed)


@contextmanager
def dataset_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` when all is written.

    What an earlier conversion left that was cut short is removed.

    Raises:
        UsageError: `out` is in use.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty. Give another folder, or --overwrite.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    if out.is_dir():
        out.rmdir()
    partial.rename(out)


def choose_classes(
    source: ForeignDataset, lung: str | None, lesions: Sequence[str], source_unknown: bool
) -> Classes:
    """Number the lesion classes 0..k, and find out which is the positive one.

    Args:
        source: names its classes.
        lung: name of the class that is lung-cancer metastasis.
        lesions: names of the classes that are lesions, where others (bone, organs) are not; all
            when empty. For maps of classes only.
        source_unknown: no class says anything about the source.

    Raises:
        UsageError: a name is unknown, or which class is positive is not clear.
    """
    if lesions and source.has_instances:
        raise UsageError("--lesions is for maps of classes; here every instance is a lesion.")
    known = ", ".join(source.classes)
    for name in (*lesions, *([lung] if lung else [])):
        if name not in source.classes:
            raise UsageError(f"no class '{name}' in {source.folder}. Its classes: {known}.")
    kept = {n: v for n, v in source.classes.items() if not lesions or n in lesions or n == lung}
    positive = lung or (POSITIVE_CLASS_NAME if POSITIVE_CLASS_NAME in kept else None)
    if source_unknown or (positive is None and len(kept) == 1):
        return Classes(UNKNOWN_CLASSES, dict.fromkeys(kept.values()))
    if positive is None:
        raise UsageError(
            f"which of the classes {known} is lung-cancer metastasis? Name it with --lung, or say "
            "--source-unknown. Classes that are no lesions are left out by --lesions."
        )
    if len(kept) == 1:
        return Classes(UNKNOWN_CLASSES, {kept[positive]: UNKNOWN_CLASSES[POSITIVE_CLASS_NAME]})
    ordered = sorted(kept, key=lambda name: kept[name])
    names = [POSITIVE_CLASS_NAME if name == positive else name for name in ordered]
    return Classes(
        {name: number for number, name in enumerate(names)},
        {kept[name]: number for number, name in enumerate(ordered)},
    )


def _attempt(
    case: ForeignCase, source: ForeignDataset, classes: Classes, out: Path
) -> int | FailedCase:
    try:
        return _write_case(case, source, classes, out)
    except DataError as error:
        return FailedCase(case=case.case, reason=str(error), fix="See the reason.")


def _write_case(case: ForeignCase, source: ForeignDataset, classes: Classes, out: Path) -> int:
    """Write one case; how many lesions it has.

    All that can fail comes before the first file, so that a failed case leaves nothing behind.
    """
    for file in (case.image, case.label):
        if file is not None:
            require_file(file, "Add it, or take the case out of the dataset.")
    part = "Ts" if case.is_test else "Tr"
    image = out / f"images{part}" / f"{case.case}_0000{_ending(case.image)}"
    if case.label is None and not case.is_test:
        raise DataError(f"{case.image} has no label map. Add one, empty for a case without lesion.")
    if case.label is None:
        _link(image, case.image)
        return 0
    folder = out / f"labels{part}"
    if source.has_instances:
        labels = _mapped(case.label, classes)
        _link(folder / f"{case.case}{_ending(case.label)}", case.label)
    else:
        drawn = read_instances(case.label)
        unnamed = sorted(set(np.unique(drawn.array).tolist()) - source.declared - {0})
        if unnamed:
            raise DataError(f"{case.label}: the dataset's description does not name {unnamed}.")
        instances, labels = components(drawn.array, classes.of_value)
        write_volume(folder / f"{case.case}.nii.gz", Volume(instances, drawn.geometry))
    _link(image, case.image)
    write_text(folder / f"{case.case}.json", json.dumps({"instances": labels}) + "\n")
    return len(labels)


def components(
    drawn: UInt16Array, class_of_value: dict[int, int | None]
) -> tuple[UInt16Array, dict[int, int | None]]:
    """Number the connected components of each class of a map (Z, Y, X), 26 neighbours touching.

    Returns:
        The instance map and the class of each id. Values without a class become background.

    Raises:
        DataError: more components than ids.
    """
    instances = np.zeros(drawn.shape, dtype=np.uint16)
    classes: dict[int, int | None] = {}
    for value, number in class_of_value.items():
        found, count = ndimage.label(drawn == value, TOUCHING)
        if len(classes) + count > MOST_INSTANCES:
            raise DataError(f"more than {MOST_INSTANCES} separate lesions: is this a mask?")
        inside = found > 0
        instances[inside] = found[inside] + len(classes)
        classes.update(dict.fromkeys(range(len(classes) + 1, len(classes) + count + 1), number))
    return instances, classes


def _mapped(label: Path, classes: Classes) -> dict[int, int | None]:
    """Class of each instance, from the JSON file beside an instance map of nnDetection."""
    path = label.with_name(strip_ending(label.name) + ".json")
    theirs = read_json(path, CaseLabels, "nnDetection keeps the classes of the instances there.")
    unknown = sorted({v for v in theirs.instances.values() if v not in classes.of_value}, key=str)
    if unknown:
        raise DataError(f"{path}: classes {unknown} are not named in the dataset's description.")
    return {
        instance: None if value is None else classes.of_value[value]
        for instance, value in theirs.instances.items()
    }


def _ending(file: Path) -> str:
    return file.name[len(strip_ending(file.name)) :]


def _link(link: Path, file: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file.resolve())


def write_description(folder: Path, name: str, labels: Mapping[str, int], n_training: int) -> None:
    """Write `dataset.json`."""
    info = DatasetInfo(
        name=name, channel_names={"0": "CT"}, labels=dict(labels), num_training=n_training
    )
    write_json(folder / "dataset.json", info)
