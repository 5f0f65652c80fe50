"""Which SEG or RTSTRUCT belongs to which CT series of an export."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path

from bonemet_auto.convert.annotations import MODALITIES, Annotation, read_annotation
from bonemet_auto.convert.choice import Choice
from bonemet_auto.dicom import Series, Study
from bonemet_auto.errors import DataError


@dataclass(frozen=True)
class Annotated:
    """A sound CT series and its objects; none if it is taken as a scan without lesions."""

    series: Series
    annotations: tuple[Annotation, ...]

    @property
    def study_uid(self) -> str:
        """Of the series."""
        return self.series.study_uid


@dataclass(frozen=True)
class Fault:
    """What of a study cannot be used, and what to do; names nobody."""

    study_uid: str
    reason: str


def match(studies: Sequence[Study], choice: Choice) -> tuple[list[Annotated], list[Fault]]:
    """Pair the objects of an export with their series.

    An object belongs to the series that it refers to; without such a reference to that of the
    images it refers to, else to the only CT in its frame of reference.

    Returns:
        The pairs, in the order of the studies, and whatever has no partner.
    """
    everything = [series for study in studies for series in (study.series, *study.others)]
    annotations, faults = read_annotations(everything)
    scans = [series for series in everything if series.modality not in MODALITIES]
    of_series, orphans = _assign(filter(choice.takes_object, annotations), scans)
    others, _ = _assign(filterfalse(choice.takes_object, annotations), scans)
    outcomes = [
        _annotated(series, of_series[series.series_uid], choice)
        for series in scans
        if series.series_uid in of_series
    ]
    touched = {item.study_uid for item in (*faults, *orphans, *outcomes)}
    passed_over = {series.study_uid for series in scans if series.series_uid in others}
    outcomes += [
        _unannotated(study.series, choice, study.series.study_uid in passed_over)
        for study in studies
        if study.series.study_uid not in touched and study.series.modality not in MODALITIES
    ]
    pairs = [item for item in outcomes if isinstance(item, Annotated)]
    return pairs, [*faults, *orphans, *(item for item in outcomes if isinstance(item, Fault))]


def read_annotations(series: Sequence[Series]) -> tuple[list[Annotation], list[Fault]]:
    """All SEG and RTSTRUCT objects, in an order that file names do not change."""
    outcomes = [
        _try_to_read(path, item)
        for item in series
        if item.modality in MODALITIES
        for path in item.files
    ]
    annotations = [outcome for outcome in outcomes if isinstance(outcome, Annotation)]
    faults = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
    return sorted(annotations, key=lambda annotation: annotation.instance_uid), faults


def _try_to_read(path: Path, series: Series) -> Annotation | Fault:
    try:
        return read_annotation(path, series.modality)
    except DataError as error:
        return Fault(series.study_uid, str(error))


def _assign(
    annotations: Iterable[Annotation], scans: Sequence[Series]
) -> tuple[dict[str, list[Annotation]], list[Fault]]:
    """Objects by the series that they were drawn on, and those whose series is not clear."""
    by_instance = {uid: series for series in scans for uid in series.instance_uids}
    of_series: dict[str, list[Annotation]] = defaultdict(list)
    orphans = []
    for annotation in annotations:
        found = _scans_of(annotation, scans, by_instance)
        if len(found) == 1:
            of_series[found[0].series_uid].append(annotation)
        else:
            orphans.append(Fault(annotation.study_uid, _orphaned(annotation.modality, len(found))))
    return of_series, orphans


def _scans_of(
    annotation: Annotation, scans: Sequence[Series], by_instance: dict[str, Series]
) -> list[Series]:
    """Series that an object refers to: CTs if there are any."""
    found = [series for series in scans if series.series_uid in annotation.series_uids]
    if not found:
        meant = {uid: by_instance[uid] for uid in annotation.instance_uids if uid in by_instance}
        found = list({series.series_uid: series for series in meant.values()}.values())
    if not found and not annotation.series_uids:
        found = [
            series
            for series in scans
            if series.modality == "CT" and series.frame_uid in annotation.frame_uids
        ]
    return [series for series in found if series.modality == "CT"] or found


def _orphaned(modality: str, count: int) -> str:
    if count:
        return (
            f"a {modality} refers to {count} series that are there. Leave only the CT series that "
            "it was drawn on."
        )
    return (
        f"a {modality} refers to a series that is not there. Add the CT series on which it was "
        "drawn."
    )


def _annotated(series: Series, objects: Sequence[Annotation], choice: Choice) -> Annotated | Fault:
    """A series with the objects that refer to it, if both can be used."""
    kinds = ", ".join(sorted(annotation.modality for annotation in objects))
    if series.fault is not None:
        return Fault(series.study_uid, f"the series of its {kinds}: {series.fault}")
    if len(objects) > 1 and not choice.merge:
        return Fault(
            series.study_uid,
            f"one series has {len(objects)} objects ({kinds}). Choose by --objects, or take them "
            "together by --merge.",
        )
    return Annotated(series, tuple(objects))


def _unannotated(series: Series, choice: Choice, is_passed_over: bool) -> Annotated | Fault:
    """A study of which no object is taken: a scan without lesions, if that was said."""
    reason = series.fault
    if is_passed_over:
        reason = "no SEG or RTSTRUCT of it fits --objects. Change the pattern (see --list)."
    elif not choice.unannotated_empty:
        reason = (
            "it has neither SEG nor RTSTRUCT. Add one, or say --unannotated-empty if such studies "
            "have no lesion."
        )
    return Annotated(series, ()) if reason is None else Fault(series.study_uid, reason)
