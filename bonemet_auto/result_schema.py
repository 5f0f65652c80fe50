"""JSON files of trained models and of what they predict, as one frozen model each."""

from typing import Annotated, Literal

from pydantic import Field

from bonemet_auto.geometry import Triple
from bonemet_auto.schema import FORMAT_VERSION, Box, Ours

PLAIN_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""A file right in its folder: no way out of it, nothing that another system reads differently."""
FileName = Annotated[str, Field(pattern=f"^{PLAIN_NAME}$")]


class PatientRuleRecord(Ours):
    """How lesions become a patient's probability; weights and intercept are those of a head."""

    name: Literal["noisy_or", "maximum", "head"]
    weights: tuple[float, ...] = ()
    intercept: float = 0.0


class OperatingPoint(Ours):
    """`fold_k/operating_point.json`: thresholds found on the fold's own validation cases.

    The same, found on those of all folds, in a consolidated model.
    """

    format_version: Literal[1] = FORMAT_VERSION
    score_threshold: float
    patient_threshold: float
    no_lesion_probability: float
    mask_weight: float = Field(default=0.5, ge=0, le=1)
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    min_volume_mm3: float = Field(default=0.0, ge=0)
    patient_rule: PatientRuleRecord = PatientRuleRecord(name="noisy_or")
    rule: str
    sensitivity: float | None
    fp_per_scan: float | None


class ConsolidatedModel(Ours):
    """`model/model.json`: what a consolidated model is made of.

    `temperatures` divide the source logits of each fold's network; its weights hold that already.
    """

    format_version: Literal[1] = FORMAT_VERSION
    bonemet_version: str
    dataset: str
    plan: str
    folds: tuple[int, ...]
    temperatures: tuple[float, ...]
    patient_rule_reason: str
    cases: int
    sha256: dict[FileName, str]


class ArchivedFile(Ours):
    """One file of a model zip."""

    size_bytes: int = Field(ge=0)
    sha256: str


class ArchiveManifest(Ours):
    """`manifest.json` of a model zip: every other file in it, and the program that wrote it."""

    format_version: Literal[1] = FORMAT_VERSION
    bonemet_version: str
    files: dict[FileName, ArchivedFile]


class LesionRecord(Ours):
    """One lesion (or candidate) of `CASE.json`.

    `mask_quality` is the estimated Dice of the mask; predictions of other programs may lack it, and
    the mean HU.
    """

    id: int
    score: float
    p_lung_metastasis: float
    volume_mm3: float
    mean_hu: float | None = None
    mask_quality: float | None = None
    box_voxel_zyx: Box
    centroid_lps_mm: Triple
    corners_lps_mm: tuple[Triple, ...]


class PatientRecord(Ours):
    """The estimate for the patient of one case."""

    probability: float
    label: Literal[0, 1]
    threshold: float


class CasePrediction(Ours):
    """`OUT/CASE.json`, and the same for `OUT/candidates/CASE.json` without a patient estimate."""

    format_version: Literal[1] = FORMAT_VERSION
    case: str
    lesions: tuple[LesionRecord, ...]
    patient: PatientRecord | None
    score_threshold: float
    warnings: tuple[str, ...]


class PrivateStudy(Ours):
    """Who a pseudonym is, and where the scan lies."""

    patient_id: str
    study_uid: str
    series_uid: str
    folder: str


class PrivateStudies(Ours):
    """`OUT_private.json`: the key of the pseudonyms of DICOM studies, and what they stand for."""

    format_version: Literal[1] = FORMAT_VERSION
    key: str
    studies: dict[str, PrivateStudy]


class CaseCost(Ours):
    """What predicting one case took.

    Attributes:
        seconds: by stage; reading and writing may run beside the networks of other cases.
        windows: that the networks looked at.
        windows_left_out: of the same grid, since no bone is there.
        notes: what was done otherwise than planned.
    """

    seconds: dict[str, float]
    windows: int
    windows_left_out: int
    notes: tuple[str, ...]


class RunReport(Ours):
    """`run_report.json`: what ran, on what, how long."""

    format_version: Literal[1] = FORMAT_VERSION
    command: str
    bonemet_version: str
    versions: dict[str, str]
    device: str
    flags: dict[str, str]
    seed: int | None
    started: str
    elapsed_s: float
    cases_done: int
    cases_failed: int
    costs: dict[str, CaseCost] = {}
