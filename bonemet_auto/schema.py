"""How JSON files are read and written, and those of the data, as one frozen model each.

Files written by people (`dataset.json`, `CASE.json`) may hold keys of their own; files written by
us may not, so that a typing slip in an edited plan is found at once. `read_json` reports all
mistakes of a file together, with the path of each field. Plans: `plan_schema`; models and results:
`result_schema`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from bonemet_auto.errors import BonemetError, DataError
from bonemet_auto.files import require_file, write_text
from bonemet_auto.geometry import Geometry, Index, Triple

FORMAT_VERSION: Literal[1] = 1
POSITIVE_CLASS_NAME = "lung_metastasis"

Box = tuple[float, float, float, float, float, float]
Model = TypeVar("Model", bound=BaseModel)


class Ours(BaseModel):
    """Written by this package: unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Theirs(BaseModel):
    """Written by people or other tools: unknown keys are kept out of our way."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DatasetInfo(Theirs):
    """`dataset.json` of a raw dataset."""

    name: str
    channel_names: dict[str, str]
    labels: dict[str, int]
    file_ending: str = ".nii.gz"
    num_training: int = Field(alias="numTraining")

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @field_validator("channel_names")
    @classmethod
    def _one_ct_channel(cls, channels: dict[str, str]) -> dict[str, str]:
        if [name.upper() for name in channels.values()] != ["CT"]:
            raise ValueError('exactly one channel {"0": "CT"} is supported')
        return channels

    @field_validator("labels")
    @classmethod
    def _classes_from_zero(cls, labels: dict[str, int]) -> dict[str, int]:
        if not labels or sorted(labels.values()) != list(range(len(labels))):
            raise ValueError(
                'classes must be numbered 0..k without gaps, e.g. {"other": 0, '
                f'"{POSITIVE_CLASS_NAME}": 1}}; background is not a class'
            )
        return labels

    @property
    def positive_class(self) -> int:
        """Class number that counts as lung-cancer metastasis."""
        return self.labels.get(POSITIVE_CLASS_NAME, 1)


class CaseLabels(Theirs):
    """`labelsTr/CASE.json`: the class of each instance id, and what is known of the patient."""

    instances: dict[int, int | None]
    patient: Literal[0, 1] | None = None
    patient_id: str | None = None


class GeometryRecord(Ours):
    """A `Geometry` on file."""

    shape: Index
    spacing_mm: Triple
    origin_lps_mm: Triple
    direction: tuple[Triple, Triple, Triple]

    @classmethod
    def of(cls, geometry: Geometry) -> "GeometryRecord":
        """Record of a grid."""
        return cls(
            shape=geometry.shape,
            spacing_mm=geometry.spacing_mm,
            origin_lps_mm=geometry.origin_lps_mm,
            direction=geometry.direction,
        )

    def geometry(self) -> Geometry:
        """The grid of a record."""
        return Geometry(self.shape, self.spacing_mm, self.origin_lps_mm, self.direction)


class LesionFingerprint(Ours):
    """One lesion as annotated, on the scan's own grid; `touching` are ids of its neighbours."""

    instance: int
    source: int | None
    volume_mm3: float
    size_mm: Triple
    share_outside_bone: float
    touching: tuple[int, ...]


class CaseFingerprint(Ours):
    """One training case. Histograms count voxels in `HISTOGRAM_EDGES_HU` bins."""

    case: str
    patient_id: str
    input_hash: str
    shape: Index
    spacing_mm: Triple
    orientation: str
    lesions: tuple[LesionFingerprint, ...]
    patient_label: Literal[0, 1] | None
    body_histogram: tuple[int, ...]
    bone_histogram: tuple[int, ...]
    lesion_histogram: tuple[int, ...]


class Fingerprint(Ours):
    """`preprocessed/D/fingerprint.json`: what the planner knows of a dataset."""

    format_version: Literal[1] = FORMAT_VERSION
    dataset: str
    cases: tuple[CaseFingerprint, ...]


Stamp = tuple[int, int] | None
"""Size of a file in bytes and time of its last change in ns; None where it is missing."""


class InspectedCase(Ours):
    """What is known of a case without faults, as long as its files have these stamps."""

    key: str
    stamps: tuple[Stamp, ...]
    labels: dict[str, int]
    patient_id: str
    warnings: tuple[str, ...]
    content_hashes: tuple[str, ...]
    fingerprint: CaseFingerprint | None


class InspectionMemory(Ours):
    """`preprocessed/D/inspection.json`: spares the next run the cases that did not change.

    `rules` goes up when the checks or the fingerprint change: what older ones found is void then.
    """

    format_version: Literal[1] = FORMAT_VERSION
    rules: Literal[2] = 2
    cases: tuple[InspectedCase, ...]


class Splits(Ours):
    """`preprocessed/D/splits.json`: validation cases of each fold; the others train."""

    format_version: Literal[1] = FORMAT_VERSION
    seed: int
    validation: tuple[tuple[str, ...], ...]


class StoredLesion(Ours):
    """One lesion on the planned grid. `is_lung` is None where the source is unknown."""

    instance: int
    is_lung: bool | None
    box_voxel_zyx: Box
    volume_voxel: int


class StoredCase(Ours):
    """`cases/CASE.json` beside the case's arrays: how the stored grid lies in the original one.

    `original` is the grid of the scan once it stands upright.

    `sha256` holds the checksums of the arrays' files by name.
    """

    format_version: Literal[1] = FORMAT_VERSION
    case: str
    patient_id: str
    input_hash: str
    original: GeometryRecord
    crop_start: Index
    crop_shape: Index
    shape: Index
    spacing_mm: Triple
    lesions: tuple[StoredLesion, ...]
    patient_label: Literal[0, 1] | None
    bone_voxels: tuple[Index, ...]
    sha256: dict[str, str] = {}


class FailedCase(Ours):
    """One entry of `failed_cases.json`."""

    case: str
    reason: str
    fix: str


def read_json(path: Path, model: type[Model], remedy: str = "Create or mend the file.") -> Model:
    """Read and check one of our files.

    Raises:
        DataError: the file is missing, not JSON, or breaks its schema; every mistake is named.
    """
    try:
        text = require_file(path, remedy).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as broken:
        raise DataError(f"{path} is no UTF-8 text ({broken}). Save it as UTF-8.") from None
    return parse_json(text, model, str(path), DataError)


def parse_json(text: str, model: type[Model], where: str, error: type[BonemetError]) -> Model:
    """Check JSON text against a schema; `where` and the kind of `error` go into the message."""
    try:
        return model.model_validate_json(text)
    except ValidationError as invalid:
        if newer := _newer_version(invalid):
            raise error(
                f"{where} was written by a newer version of bonemet_auto (format_version {newer}, "
                f"this one reads {FORMAT_VERSION}); update bonemet_auto."
            ) from None
        mistakes = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            for item in invalid.errors()
        )
        raise error(f"{where}: {mistakes}. See docs/reference/formats.md.") from None


def _newer_version(invalid: ValidationError) -> int | None:
    """The `format_version` that was found, if it is above ours."""
    found = [item["input"] for item in invalid.errors() if item["loc"] == ("format_version",)]
    return found[0] if found and isinstance(found[0], int) and found[0] > FORMAT_VERSION else None


def write_failures(path: Path, failed: Sequence[FailedCase]) -> None:
    """Write `failed_cases.json`; without any failed case, remove that of an earlier run."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    write_text(path, json.dumps([case.model_dump() for case in failed], indent=1) + "\n")


def read_failures(path: Path) -> list[FailedCase]:
    """Read what `write_failures` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        return TypeAdapter(list[FailedCase]).validate_json(path.read_bytes())
    except ValidationError:
        raise DataError(f"{path} is no list of failed cases. Remove it, and run again.") from None


def write_json(path: Path, value: BaseModel) -> None:
    """Write one of our files atomically; equal values give equal bytes."""
    write_text(path, value.model_dump_json(indent=1, by_alias=True) + "\n")
