"""Dataset folders of nnU-Net (and the Medical Segmentation Decathlon) and of nnDetection.

Sources: the two projects' documentation of their dataset formats. nnU-Net: `dataset.json` beside
`imagesTr`, `labelsTr`, maps of classes, 0 the background. nnDetection: `dataset.json` or
`dataset.yaml` beside `raw_splitted`, maps of instances, and a JSON file with each one's class.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bonemet_auto.errors import DataError
from bonemet_auto.files import require_file
from bonemet_auto.images import ENDINGS, image_ending, strip_ending

DESCRIPTIONS = ("dataset.json", "dataset.yaml", "dataset.yml")
NOT_LESIONS = ("background", "ignore")
_CHANNEL_KEYS = ("channel_names", "modalities", "modality")


@dataclass(frozen=True)
class ForeignCase:
    """Files of one case; test cases may have no label map.

    Attributes:
        case: its id.
        image: the CT.
        label: map of classes (nnU-Net) or of instances (nnDetection).
        is_test: held out.
    """

    case: str
    image: Path
    label: Path | None
    is_test: bool


@dataclass(frozen=True)
class ForeignDataset:
    """A dataset of another tool.

    Attributes:
        folder: where it lies.
        name: as its description says.
        has_instances: the label maps number lesions (nnDetection), not classes (nnU-Net).
        classes: value of each class by its name, without background.
        declared: every value that the description names.
        cases: in the order of their ids, training first.
    """

    folder: Path
    name: str
    has_instances: bool
    classes: dict[str, int]
    declared: frozenset[int]
    cases: tuple[ForeignCase, ...]


def open_foreign(folder: Path) -> ForeignDataset:
    """Recognise a dataset folder and pair its files.

    Raises:
        DataError: it is no dataset of nnU-Net or nnDetection, or not one of CTs with masks.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist. Give the folder of a dataset.")
    path = _description(folder)
    about = _read(path)
    has_instances = (folder / "raw_splitted").is_dir()
    files = folder / "raw_splitted" if has_instances else folder
    if not has_instances and "dataset" not in about and not (folder / "imagesTr").is_dir():
        raise DataError(
            f"{folder} holds neither imagesTr (nnU-Net) nor raw_splitted (nnDetection). Give the "
            "folder that does."
        )
    channels = _channels(path, about)
    listed = about.get("dataset")
    if isinstance(listed, dict):
        cases = tuple(_listed(path, listed, channels))
    else:
        cases = (*_pair(files, "Tr", channels), *_pair(files, "Ts", channels))
    if not any(not case.is_test for case in cases):
        raise DataError(
            f"{files / 'imagesTr'} holds no image of the CT channel. Expected files ending in "
            f"{', '.join(ENDINGS)}."
        )
    declared = _classes(path, about)
    classes = {name: n for name, n in declared.items() if name.lower() not in NOT_LESIONS}
    if not has_instances and 0 in classes.values():
        raise DataError(
            f"{path} gives the value 0 to a class, not to the background. If this is a raw dataset "
            "of bonemet_auto, it needs no conversion."
        )
    return ForeignDataset(
        folder=folder,
        name=str(about.get("name") or folder.name),
        has_instances=has_instances,
        classes=classes,
        declared=frozenset(declared.values()),
        cases=cases,
    )


def _description(folder: Path) -> Path:
    found = [folder / name for name in DESCRIPTIONS if (folder / name).is_file()]
    if not found:
        raise DataError(
            f"{folder} holds none of {', '.join(DESCRIPTIONS)}. Give the folder of a dataset of "
            "nnU-Net or nnDetection."
        )
    return found[0]


def _read(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file that must be a table of keys."""
    text = require_file(path, "Give the folder of a dataset.").read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read: {problem}. Mend a copy of it.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is no table of keys and values. Mend a copy of it.")
    return content


def _classes(path: Path, about: dict[str, Any]) -> dict[str, int]:
    """All classes by name, from `{"name": 1}` (nnU-Net 2) or `{"1": "name"}` (all others)."""
    labels = about.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError(f'{path}: "labels" is missing; it names the classes of the masks.')
    classes = {}
    for key, value in labels.items():
        name, number = (key, value) if str(value).lstrip("-").isdecimal() else (value, key)
        if not str(number).isdecimal():
            raise DataError(
                f"{path}: label {key!r} stands for {value!r}. Regions of several values are not "
                "lesions of one class: give each class one value, in a copy of the dataset."
            )
        classes[str(name)] = int(number)
    return classes


def _channels(path: Path, about: dict[str, Any]) -> dict[int, bool]:
    """For each channel number whether it is the CT; exactly one must be."""
    named: dict[str, object] = next(
        (about[key] for key in _CHANNEL_KEYS if isinstance(about.get(key), dict)), {}
    )
    is_ct = {
        int(number): str(name).upper() == "CT"
        for number, name in named.items()
        if str(number).isdecimal()
    }
    if sum(is_ct.values()) != 1:
        raise DataError(
            f"{path}: {sum(is_ct.values())} of the channels {list(named.values())} are called CT, "
            "expected one. If one of them is a CT in Hounsfield units, call it CT in a copy."
        )
    return is_ct


def _pair(files: Path, part: str, channels: dict[int, bool]) -> Iterator[ForeignCase]:
    """Cases of `imagesTr` or `imagesTs` with their label maps."""
    labels = _by_stem(files / f"labels{part}")
    for stem, image in _by_stem(files / f"images{part}").items():
        numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
        case, channel = (numbered[1], int(numbered[2])) if numbered else (stem, 0)
        if channels.get(channel):
            yield ForeignCase(case, image, labels.get(case), part == "Ts")


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files by name without ending, in the order of the names."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        strip_ending(path.name): path
        for path in entries
        if image_ending(path.name) and not path.name.startswith(".") and path.is_file()
    }


def _listed(path: Path, listed: dict[str, Any], channels: dict[int, bool]) -> Iterator[ForeignCase]:
    """Cases of a `dataset.json` that lists the files itself, relative to it or with variables."""
    ct = sorted(channels).index(next(number for number, is_ct in channels.items() if is_ct))
    for case, files in sorted(listed.items()):
        try:
            image, label = files["images"][ct], files["label"]
        except (KeyError, IndexError, TypeError):
            raise DataError(
                f'{path}: case {case} needs {{"images": [...], "label": ...}} with one image for '
                "each channel. Mend a copy of it."
            ) from None
        yield ForeignCase(case, _resolved(path, image), _resolved(path, label), is_test=False)


def _resolved(path: Path, file: str) -> Path:
    return path.parent / os.path.expandvars(file)
