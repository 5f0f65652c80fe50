"""Write DICOM studies with SEG or RTSTRUCT in our raw layout, under pseudonyms."""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bonemet_auto.convert.annotations import Annotation, IndexArray
from bonemet_auto.convert.choice import Choice, idle_rules
from bonemet_auto.convert.contours import read_contours
from bonemet_auto.convert.lesions import Lesion, components_of, draw
from bonemet_auto.convert.match import Annotated, match
from bonemet_auto.convert.segments import read_segments
from bonemet_auto.convert.write import (
    UNKNOWN_CLASSES,
    Converted,
    dataset_folder,
    write_description,
)
from bonemet_auto.dicom import Series, Study
from bonemet_auto.errors import DataError
from bonemet_auto.files import write_text
from bonemet_auto.images import Volume, write_volume
from bonemet_auto.pseudonyms import name_patients, name_studies
from bonemet_auto.scans import read_scan
from bonemet_auto.schema import FailedCase

logger = logging.getLogger(__name__)

_FIX = "See the reason."


def convert_studies(
    studies: Sequence[Study], out: Path, choice: Choice, private: Path
) -> Converted:
    """Write `out` in our raw layout: each annotated CT series becomes a case.

    Series, objects and studies that cannot be used are left out and listed. `out` appears when it
    is complete. Nothing in it tells who a patient is.

    Args:
        studies: as `dicom.find_studies` finds them; at least one.
        out: folder to make; must be absent or empty.
        choice: what is a lesion, and where from.
        private: file that tells which study a pseudonym stands for.

    Raises:
        UsageError: `out` is in use.
        DataError: the private file is broken.
    """
    pairs, faults = match(studies, choice)
    _tell_of_regions(pairs, choice)
    counts: list[int] = []
    with dataset_folder(out) as partial:
        named = name_studies(studies, private).items()
        names = {study.series.study_uid: name for name, study in named}
        patients = name_patients(studies, private)
        failed = [FailedCase(case=names[f.study_uid], reason=f.reason, fix=_FIX) for f in faults]
        cases = _name_cases(pairs, names)
        for case, pair in tqdm(cases.items(), "Converting", unit="case", disable=None):
            outcome = _attempt(partial, case, patients[pair.study_uid], pair, choice)
            if isinstance(outcome, FailedCase):
                failed.append(outcome)
            else:
                counts.append(outcome)
        name = re.sub(r"^Dataset\d{3}_", "", out.name)
        write_description(partial, name, UNKNOWN_CLASSES, len(counts))
    return Converted(len(counts), sum(counts), sorted(failed, key=lambda failure: failure.case))


def _name_cases(pairs: Sequence[Annotated], names: Mapping[str, str]) -> dict[str, Annotated]:
    """Cases by name: that of the study, with a number where several of its series are annotated."""
    by_study: dict[str, list[Annotated]] = defaultdict(list)
    for pair in pairs:
        by_study[names[pair.study_uid]].append(pair)
    named = {}
    for study, members in by_study.items():
        members.sort(key=lambda pair: (pair.series.number, pair.series.series_uid))
        for number, pair in enumerate(members, 1):
            named[study if len(members) == 1 else f"{study}_{number}"] = pair
    return dict(sorted(named.items()))


def _tell_of_regions(pairs: Sequence[Annotated], choice: Choice) -> None:
    regions = [
        (pair.series, region)
        for pair in pairs
        for annotation in pair.annotations
        for region in annotation.regions
    ]
    taken = [(series, region) for series, region in regions if choice.takes(region)]
    logger.info(
        "%d of %d segments and ROIs count as lesions (--list shows which)", len(taken), len(regions)
    )
    if idle := idle_rules(choice, taken):
        logger.warning("warning: no lesion fits %s (%d in all)", ", ".join(idle[:5]), len(idle))


def _attempt(
    folder: Path, case: str, patient: str, pair: Annotated, choice: Choice
) -> int | FailedCase:
    try:
        return _write_case(folder, case, patient, pair, choice)
    except DataError as error:
        return FailedCase(case=case, reason=str(error), fix=_FIX)


def _write_case(folder: Path, case: str, patient: str, pair: Annotated, choice: Choice) -> int:
    """Write one case; how many lesions it has.

    All that can fail comes before the first file, so that a failed case leaves nothing behind.
    """
    lesions = _lesions(case, pair, choice)
    scan = read_scan(pair.series)
    drawn, shared = draw(lesions, scan.geometry.shape)
    if shared:
        logger.warning(
            "warning: %s: %d voxels are in two lesions, and go to the smaller one", case, shared
        )
    labels = {number: lesion.source for number, lesion in enumerate(lesions, 1)}
    described = json.dumps({"instances": labels, "patient_id": patient})
    write_volume(folder / "imagesTr" / f"{case}_0000.nii.gz", scan)
    write_volume(folder / "labelsTr" / f"{case}.nii.gz", Volume(drawn, scan.geometry))
    write_text(folder / "labelsTr" / f"{case}.json", described + "\n")
    return len(lesions)


def _lesions(case: str, pair: Annotated, choice: Choice) -> list[Lesion]:
    """Lesions of all objects of a case.

    Raises:
        DataError: there is none, and nobody said that this may be.
    """
    found = []
    for number, annotation in enumerate(pair.annotations, 1):
        of_object = f" of object {number}" if len(pair.annotations) > 1 else ""
        found += list(_lesions_of_object(case, pair.series, annotation, choice, of_object))
    if not found and not choice.unannotated_empty:
        raise DataError(
            "none of its segments or ROIs is a lesion with voxels (--list shows them). Name the "
            "lesions with --lesions, or say --unannotated-empty if such studies have none."
        )
    return found


def _lesions_of_object(
    case: str, series: Series, annotation: Annotation, choice: Choice, of_object: str
) -> Iterator[Lesion]:
    if series.geometry is None:
        raise DataError(series.fault)
    regions = {region.number: region for region in annotation.regions if choice.takes(region)}
    is_seg = annotation.modality == "SEG"
    read = read_segments if is_seg else read_contours
    voxels_of = read(annotation.path, regions.keys(), series.geometry)
    for number, region in regions.items():
        where = f"{'segment' if is_seg else 'ROI'} {number}{of_object}"
        if number not in voxels_of:
            logger.warning("warning: %s: %s is empty, and passed over", case, where)
            continue
        voxels = voxels_of[number]
        _require_voxels(voxels, where)
        if not is_seg and _skips_slices(voxels):
            logger.warning(
                "warning: %s: %s is drawn on every %d. slice at most, and comes in as flat pieces; "
                "interpolate its contours", case, where, np.diff(np.unique(voxels[:, 0])).min(),
            )  # fmt: skip
        source = choice.source_of(series, region)
        pieces = [voxels] if choice.is_one_lesion(region) else components_of(voxels)
        yield from (Lesion(piece, source, where) for piece in pieces)


def _require_voxels(voxels: IndexArray, where: str) -> None:
    if not len(voxels):
        raise DataError(
            f"{where} is so small that no voxel centre lies within. Draw it anew, or leave it out "
            "(--exclude)."
        )


def _skips_slices(voxels: IndexArray) -> bool:
    """Whether there are three slices or more, and no neighbours among them."""
    slices = np.unique(voxels[:, 0])
    return len(slices) > 2 and np.diff(slices).min() > 1
