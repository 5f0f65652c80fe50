"""Scans without labels on the planned grid, for pretraining."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bonemet_auto.errors import BonemetError, DataError
from bonemet_auto.files import sha256_file
from bonemet_auto.images import read_hu
from bonemet_auto.plan_schema import Plan
from bonemet_auto.preprocess import CODE_VERSION, bone_samples, to_plan_grid
from bonemet_auto.schema import FailedCase, GeometryRecord, StoredCase
from bonemet_auto.store import open_case, write_case
from bonemet_auto.upright import upright

logger = logging.getLogger(__name__)


def store_unlabelled(
    images: Mapping[str, Path], plan: Plan, folder: Path
) -> tuple[list[str], list[FailedCase]]:
    """Bring scans to the planned grid as cases without lesions; those that are there stay.

    Args:
        images: scans by case name.
        plan: gives the spacing.
        folder: takes the cases.

    Returns:
        Names of the cases that are stored now, and those that could not be.
    """
    stored, failed = [], []
    for case, path in tqdm(images.items(), "Preprocessing", unit="case", disable=None):
        reason = _store(case, path, plan, folder)
        if reason is None:
            stored.append(case)
        else:
            failed.append(FailedCase(case=case, reason=reason, fix="Mend or remove the file."))
            logger.warning("%s is left out: %s", path, reason)
    return stored, failed


def _store(case: str, path: Path, plan: Plan, folder: Path) -> str | None:
    """Store one scan unless it is there; the reason if that fails."""
    try:
        parts = f"unlabelled {sha256_file(path)} {plan.spacing_mm} {CODE_VERSION}"
        input_hash = hashlib.sha256(parts.encode()).hexdigest()
        if _is_stored(case, input_hash, folder):
            return None
        scan = upright(read_hu(path))
        planned = to_plan_grid(scan.array, scan.geometry.spacing_mm, plan.spacing_mm)
    except (BonemetError, OSError) as error:
        return str(error)
    meta = StoredCase(
        case=case,
        patient_id=case,
        input_hash=input_hash,
        original=GeometryRecord.of(scan.geometry),
        crop_start=planned.crop_start,
        crop_shape=planned.crop_shape,
        shape=planned.grid.shape,
        spacing_mm=planned.spacing_mm,
        lesions=(),
        patient_label=None,
        bone_voxels=bone_samples(planned, input_hash),
    )
    write_case(folder, planned.hu, np.zeros(planned.hu.shape, dtype=np.uint16), meta)
    return None


def _is_stored(case: str, input_hash: str, folder: Path) -> bool:
    try:
        return open_case(folder, case).meta.input_hash == input_hash
    except DataError:
        return False
