"""A user's table of cases, patients or lesions, and the parts of a cohort that its columns name."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.evaluation.bootstrap import BoolArray, FloatArray
from bonemet_auto.files import require_file

logger = logging.getLogger(__name__)

NOT_GIVEN = "not given"
MAX_LEVELS = 20
"""A column of more different texts names rows; it does not part them."""
MAX_NUMBERS = 6
"""A column of more different numbers is cut at its tertiles."""

_KEYS = (("case", "reference_id"), ("case",), ("patient_id",))
_NAMED = 10


@dataclass(frozen=True)
class LevelTable:
    """A user's table whose header is usable; all cells are text.

    Attributes:
        path: of the file.
        rows: one per case, patient or annotated lesion.
        keys: columns that say of which one.
        columns: columns that part the cohort.
        chosen: whether the user named these columns.
    """

    path: Path
    rows: pd.DataFrame
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    chosen: bool

    @property
    def of_lesions(self) -> bool:
        """Whether its rows are annotated lesions."""
        return "reference_id" in self.keys


def read_level_table(path: Path, by: Sequence[str] = ()) -> LevelTable:
    """Read a table.

    Args:
        path: CSV (commas, semicolons or tabs) keyed by `case`, `patient_id`, or `case` and
            `reference_id` for annotated lesions.
        by: columns to use; all but the keys if empty.

    Raises:
        DataError: an unusable table, or a key twice.
        UsageError: no such column.
    """
    table = _read_csv(path)
    keys = next((keys for keys in _KEYS if set(keys) <= set(table.columns)), None)
    if keys is None:
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}, but neither case nor patient_id. "
            "Name the column of the cases case, or that of the patients patient_id."
        )
    others = tuple(column for column in table.columns if column not in keys)
    unknown = [column for column in by if column not in others]
    if unknown or not others:
        raise UsageError(
            f"{path} has no column {' or '.join(unknown) or 'beside its keys'} to part the cohort "
            f"by; it has {', '.join(others) or 'none'}."
        )
    given = pd.MultiIndex.from_frame(table[list(keys)])
    twice = given[given.duplicated()].unique()
    if len(twice):
        raise DataError(f"{path}: {_names(twice)} twice. Leave one row of each.")
    return LevelTable(path, table, keys, tuple(by) or others, bool(by))


def find_levels(table: LevelTable, parts: pd.DataFrame) -> dict[str, dict[str, BoolArray]]:
    """Which scans or lesions belong to each level of each column, in the order to show them.

    Rows of cases, patients or lesions that the cohort lacks are passed over, and said; an empty
    cell is a level of its own.

    Args:
        table: of the user.
        parts: one row per scan, or per annotated lesion for a table of lesions.

    Raises:
        DataError: a scan or lesion without a row.
        UsageError: a column that the user named has too many texts.
    """
    rows = _rows_of(table, parts)
    found = {}
    for column in table.columns:
        levels = _levels(rows[column])
        if len(levels) <= MAX_LEVELS:
            found[column] = levels
            continue
        many = f"{table.path}: {len(levels)} different texts in column {column}"
        if table.chosen:
            raise UsageError(f"{many}; at most {MAX_LEVELS} can part a cohort. Group them first.")
        logger.warning("%s part nothing; it is passed over", many)
    return found


def _read_csv(path: Path) -> pd.DataFrame:
    """The table as text, its cells stripped."""
    require_file(path, "Give a CSV with a column case or patient_id.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as broken:
        raise DataError(f"{path} is no UTF-8 text ({broken}). Save it as UTF-8.") from None
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    cells = csv.reader(text.splitlines(), delimiter=separator)
    rows = [row for row in ([cell.strip() for cell in line] for line in cells) if any(row)]
    uneven = [number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if len(rows) < 2 or uneven:
        problem = f"row {uneven[0]} has another number of cells" if uneven else "no row"
        raise DataError(f"{path}: {problem}. Expected a header and one row per case or patient.")
    twice = sorted({name for name in rows[0] if rows[0].count(name) > 1})
    if twice:
        raise DataError(f"{path}: columns {', '.join(twice)} are there twice. Rename one of them.")
    return pd.DataFrame(rows[1:], columns=rows[0])


def _rows_of(table: LevelTable, parts: pd.DataFrame) -> pd.DataFrame:
    """The table's row for each scan or lesion."""
    keys = list(table.keys)
    given = pd.MultiIndex.from_frame(table.rows[keys])
    wanted = pd.MultiIndex.from_frame(parts[keys].astype(str))
    missing = wanted[~wanted.isin(given)].unique()
    if len(missing):
        raise DataError(
            f"{table.path} has no row for {_names(missing)}. Add them; a cell may be empty, which "
            f"counts as '{NOT_GIVEN}'."
        )
    strange = given[~given.isin(wanted)]
    if len(strange):
        logger.warning("%s: passed over, not in this cohort: %s", table.path, _names(strange))
    return table.rows.iloc[given.get_indexer(wanted)].reset_index(drop=True)


def _names(keys: pd.MultiIndex) -> str:
    """Keys for a message: at most ten of them."""
    names = [" lesion ".join(key) for key in keys]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" * (len(names) > _NAMED))


def _levels(cells: pd.Series) -> dict[str, BoolArray]:
    """Rows of each level: numbers in their order, many numbers cut at tertiles, then texts."""
    blank = (cells == "").to_numpy()
    numbers = pd.to_numeric(cells.where(~blank), errors="coerce").to_numpy(np.float64)
    if np.isfinite(numbers[~blank]).all():
        different = np.unique(numbers[~blank])
        if different.size > MAX_NUMBERS:
            levels = _tertiles(numbers)
        else:
            levels = {f"{number:g}": numbers == number for number in different}
    else:
        levels = {text: (cells == text).to_numpy() for text in sorted(set(cells[~blank]))}
    return levels | ({NOT_GIVEN: blank} if blank.any() else {})


def _tertiles(numbers: FloatArray) -> dict[str, BoolArray]:
    """Three parts of about one size; equal numbers stay together."""
    low, high = np.nanquantile(numbers, [1 / 3, 2 / 3])
    levels = {
        f"<= {low:g}": numbers <= low,
        f"> {low:g} to {high:g}": (numbers > low) & (numbers <= high),
        f"> {high:g}": numbers > high,
    }
    return {name: rows for name, rows in levels.items() if rows.any()}
