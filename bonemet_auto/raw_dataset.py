"""A raw dataset folder: which files belong to which case, and what its JSON files say.

Files are only paired by name here. Whether they exist and fit each other is found out by
`integrity.inspect_dataset`, which reports all faults of all files together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bonemet_auto.errors import DataError
from bonemet_auto.images import list_images
from bonemet_auto.schema import CaseLabels, DatasetInfo, read_json

PatientLabel = Literal[0, 1]


@dataclass(frozen=True)
class RawCase:
    """Files of one case, whether they exist or not."""

    case: str
    image: Path
    label: Path
    labels_json: Path
    is_test: bool


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset; cases are in the order of their ids."""

    folder: Path
    info: DatasetInfo
    training: tuple[RawCase, ...]
    test: tuple[RawCase, ...]


def open_raw_dataset(folder: Path) -> RawDataset:
    """Read `dataset.json` and pair images, label maps and class files.

    Raises:
        DataError: no such folder, unusable `dataset.json`, no training image, or a case twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist. Give the folder of a raw dataset.")
    info = read_json(
        folder / "dataset.json",
        DatasetInfo,
        "A raw dataset needs it; docs/reference/formats.md has an example.",
    )
    training = _pair(folder, "Tr", info.file_ending)
    if not any(case.image.is_file() for case in training):
        raise DataError(
            f"{folder / 'imagesTr'} holds no image. Put one CT per case there, named "
            f"CASE_0000{info.file_ending}."
        )
    return RawDataset(folder, info, training, _pair(folder, "Ts", info.file_ending))


def read_case_labels(path: Path) -> CaseLabels:
    """Read `labelsTr/CASE.json`.

    Raises:
        DataError: it is missing or breaks its schema.
    """
    return read_json(path, CaseLabels, 'Write it; for a case without lesions: {"instances": {}}.')


def patient_label(labels: CaseLabels, positive_class: int) -> PatientLabel | None:
    """1 lung-cancer metastasis, 0 not, None unknown.

    A `patient` entry has the last word, null included. Without one, a positive lesion makes the
    patient positive, a lesion of unknown source leaves the patient unknown.
    """
    if "patient" in labels.model_fields_set:
        return labels.patient
    classes = labels.instances.values()
    if positive_class in classes:
        return 1
    return None if None in classes else 0


def _pair(folder: Path, part: str, ending: str) -> tuple[RawCase, ...]:
    """Cases of one part: every image, and every label map or class file without an image."""
    image_folder, label_folder = folder / f"images{part}", folder / f"labels{part}"
    images, labels = list_images(image_folder), list_images(label_folder)
    described = {
        path.stem
        for path in (label_folder.iterdir() if label_folder.is_dir() else ())
        if path.suffix == ".json" and not path.name.startswith(".")
    }
    return tuple(
        RawCase(
            case=case,
            image=images.get(case, image_folder / f"{case}_0000{ending}"),
            label=labels.get(case, label_folder / f"{case}{ending}"),
            labels_json=label_folder / f"{case}.json",
            is_test=part == "Ts",
        )
        for case in sorted(images.keys() | labels.keys() | described)
    )
