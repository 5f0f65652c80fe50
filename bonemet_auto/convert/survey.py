"""What SEG and RTSTRUCT objects of an export hold, before anything is converted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from bonemet_auto.convert.annotations import Annotation, Region
from bonemet_auto.convert.choice import UNKNOWN_SOURCE, Choice
from bonemet_auto.convert.match import match
from bonemet_auto.convert.write import UNKNOWN_CLASSES
from bonemet_auto.dicom import Series, Study
from bonemet_auto.errors import DataError

COLUMNS = ("object", "titles", "label", "kind", "lesion", "pieces", "source", "scans")

_SOURCES = {number: name for name, number in UNKNOWN_CLASSES.items()} | {None: UNKNOWN_SOURCE}


def survey(studies: Sequence[Study], choice: Choice) -> tuple[pd.DataFrame, Counter[str]]:
    """Regions of all scans by their names, and what would be made of them.

    Labels may hold names of patients: for the eyes of whoever asks, not for a file.

    Returns:
        A table with `COLUMNS`: `scans` counts; `pieces` says what becomes of those of a lesion.
        And how often there is each reason for which something cannot be converted.
    """
    _, faults = match(studies, choice)
    # Objects that are too many for one scan are shown too: these are to be chosen from.
    pairs, _ = match(studies, replace(choice, merge=True))
    rows = Counter(
        (*_names(annotation, region), *_fate(pair.series, region, choice))
        for pair in pairs
        for annotation in pair.annotations
        for region in annotation.regions
    )
    table = pd.DataFrame([(*row, count) for row, count in sorted(rows.items())], columns=COLUMNS)
    return table, Counter(fault.reason for fault in faults)


def _names(annotation: Annotation, region: Region) -> tuple[str, ...]:
    modality, *titles = annotation.titles
    distinct = dict.fromkeys(title for title in titles if title)
    return modality, " / ".join(distinct), region.label, region.kind


def _fate(series: Series, region: Region, choice: Choice) -> tuple[str, str, str]:
    """Whether a region is a lesion, what its pieces are, and its source."""
    if not choice.takes(region):
        return "no", "", ""
    pieces = "one lesion" if choice.is_one_lesion(region) else "a lesion each"
    try:
        source = choice.source_of(series, region)
    except DataError:
        return "yes", pieces, "contradictory"
    return "yes", pieces, _SOURCES[source]
