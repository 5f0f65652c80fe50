"""Which outlines are lesions, and where these come from: what a person says on that."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from bonemet_auto.convert.annotations import Annotation, Region
from bonemet_auto.convert.write import OTHER_CLASS_NAME, UNKNOWN_CLASSES
from bonemet_auto.dicom import Series
from bonemet_auto.errors import DataError
from bonemet_auto.files import require_file
from bonemet_auto.schema import POSITIVE_CLASS_NAME

UNKNOWN_SOURCE = "unknown"

_KEYS = ("patient_id", "study_uid", "label")
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Rule:
    """A source, and the lesions that have it: those that fit all that is given.

    Attributes:
        patient_id, study_uid: as in the DICOM headers; empty for any.
        label: pattern of a region's names; empty for any.
        source: our class, None where it is unknown.
        origin: flag, or line of the table, for messages.
    """

    patient_id: str
    study_uid: str
    label: str
    source: int | None
    origin: str

    def fits(self, series: Series, region: Region) -> bool:
        """Whether a lesion on a scan is meant."""
        return (
            self.patient_id in ("", series.patient_id)
            and self.study_uid in ("", series.study_uid)
            and (not self.label or fits_any(region.names, [self.label]))
        )


@dataclass(frozen=True)
class Choice:
    """What of the annotations is taken, and how.

    Attributes:
        lesions: patterns of regions that are lesions; if empty, all that may be one.
        exclude: patterns of regions that are none.
        objects: patterns of objects that are read; if empty, all.
        merge: several objects on one scan are taken together, not refused.
        instances: a region is one lesion (`regions`), or each of its connected components is
            (`components`); `auto`: one lesion if it is tracked.
        unannotated_empty: a study without annotation is a scan without lesions.
        rules: sources of lesions.
    """

    lesions: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    merge: bool = False
    instances: Literal["auto", "regions", "components"] = "auto"
    unannotated_empty: bool = False
    rules: tuple[Rule, ...] = ()

    def takes_object(self, annotation: Annotation) -> bool:
        """Whether an object is read."""
        return not self.objects or fits_any(annotation.titles, self.objects)

    def takes(self, region: Region) -> bool:
        """Whether a region is a lesion."""
        if fits_any(region.names, self.exclude):
            return False
        if self.lesions:
            return fits_any(region.names, self.lesions)
        return region.may_be_lesion

    def is_one_lesion(self, region: Region) -> bool:
        """Whether a region is one lesion however many pieces it has."""
        return self.instances == "regions" or (self.instances == "auto" and region.is_tracked)

    def source_of(self, series: Series, region: Region) -> int | None:
        """Class of a lesion, None where nothing is said.

        Raises:
            DataError: rules contradict each other.
        """
        fitting = [rule for rule in self.rules if rule.fits(series, region)]
        if len({rule.source for rule in fitting}) > 1:
            raise DataError(
                f"{' and '.join(rule.origin for rule in fitting)} give region {region.number} "
                "different sources. Make them agree."
            )
        return fitting[0].source if fitting else None


def fits_any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether a name fits a pattern with `*` and `?`, in whatever case it is written."""
    literal = [pattern.casefold().replace("[", "[[]") for pattern in patterns]
    return any(fnmatchcase(name.casefold(), pattern) for name in names for pattern in literal)


def flag_rules(lung: str | None, other: str | None) -> tuple[Rule, ...]:
    """Rules of patterns of labels, as flags give them."""
    given = (("--lung", lung, POSITIVE_CLASS_NAME), ("--other", other, OTHER_CLASS_NAME))
    return tuple(
        Rule("", "", pattern, UNKNOWN_CLASSES[name], flag)
        for flag, pattern, name in given
        if pattern
    )


def read_rules(table: Path) -> tuple[Rule, ...]:
    """Rules of a CSV file: `source`, and one or more of `patient_id`, `study_uid`, `label`.

    Raises:
        DataError: it is missing or no such table; the line is named, its content is not.
    """
    require_file(table, "Give a CSV file.")
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{table} is no UTF-8 text. Save it as CSV in UTF-8.") from None
    header = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=max(_DELIMITERS, key=header.count))
    columns = [name.strip() for name in rows.fieldnames or ()]
    if "source" not in columns or not set(columns) - {"source"} <= set(_KEYS) or len(columns) < 2:
        raise DataError(
            f"{table}: its columns are {', '.join(columns) or 'none'}; expected source, and one or "
            f"more of {', '.join(_KEYS)}."
        )
    rows.fieldnames = columns
    return tuple(_rule(table, rows.line_num, row) for row in rows if any(row.values()))


def _rule(table: Path, line: int, row: dict[str, str | None]) -> Rule:
    cells = {name: (value or "").strip() for name, value in row.items() if name is not None}
    named = cells["source"] or UNKNOWN_SOURCE
    if None in row or named not in (*UNKNOWN_CLASSES, UNKNOWN_SOURCE):
        raise DataError(
            f"{table}, line {line}: expected as many cells as columns, and a source of "
            f"{', '.join(UNKNOWN_CLASSES)} or {UNKNOWN_SOURCE}."
        )
    if not any(cells.get(key) for key in _KEYS):
        raise DataError(
            f"{table}, line {line}: names no lesion. Fill in one of {', '.join(_KEYS)}."
        )
    patient_id, study_uid, label = (cells.get(key, "") for key in _KEYS)
    origin = f"line {line} of {table.name}"
    return Rule(patient_id, study_uid, label, UNKNOWN_CLASSES.get(named), origin)


def idle_rules(choice: Choice, lesions: Sequence[tuple[Series, Region]]) -> list[str]:
    """Origins of rules that no lesion fits: a typing slip, or a study that is not there."""
    return [
        rule.origin
        for rule in choice.rules
        if not any(rule.fits(series, region) for series, region in lesions)
    ]
