"""Parts of a cohort by a user's table."""

import json

import pandas as pd
import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError, UsageError
from bonemet_auto.evaluation.cohort import read_cohort
from bonemet_auto.evaluation.evaluate import evaluate_folders
from bonemet_auto.evaluation.levels import read_level_table
from bonemet_auto.evaluation.subgroups import evaluate_subgroups, format_subgroups
from tests.unit.evaluation_fakes import write_cohort, write_found

N_PATIENTS = 24


@pytest.fixture
def folders(tmp_path):
    ref, pred = tmp_path / "labelsTs", tmp_path / "pred"
    write_cohort(ref, N_PATIENTS)
    write_found(pred, N_PATIENTS)
    return pred, ref


@pytest.fixture
def cohort(folders):
    return read_cohort(*folders)


def write_table(folder, header, rows, separator=","):
    path = folder / "table.csv"
    lines = [separator.join(map(str, row)) for row in [header, *rows]]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    return path


def of_patients(folder, name, values, **options):
    rows = [(f"P{number:02}", values(number)) for number in range(N_PATIENTS)]
    return read_level_table(write_table(folder, ("patient_id", name), rows, **options))


def test_a_level_is_evaluated_like_a_folder_of_its_cases(cohort, folders, tmp_path):
    table = of_patients(tmp_path, "site", lambda number: "Süd" if number < 15 else "Nord")
    north, south = evaluate_subgroups(cohort, table, n_bootstrap=30)
    assert (north.level, north.n_patients, north.small) == ("Nord", 9, True)
    assert (south.level, south.n_patients, south.small) == ("Süd", 15, False)
    cases = [f"case_{number:02}" for number in range(15)]
    assert south.figures == evaluate_folders(*folders, n_bootstrap=30, cases=cases).figures
    assert south.n_lesions == 2 * (15 - 2)


def test_many_numbers_are_cut_at_tertiles_and_few_are_not(cohort, tmp_path):
    many = of_patients(tmp_path, "mm", lambda number: 1 + number / 10, separator=";")
    levels = [each.level for each in evaluate_subgroups(cohort, many, n_bootstrap=5)]
    assert levels == ["<= 1.76667", "> 1.76667 to 2.53333", "> 2.53333"]
    few = of_patients(tmp_path, "mm", lambda number: number % 3 + 9.0)
    assert [each.level for each in evaluate_subgroups(cohort, few, n_bootstrap=5)] == [
        "9",
        "10",
        "11",
    ]


def test_equal_numbers_stay_together(cohort, tmp_path):
    table = of_patients(tmp_path, "mm", lambda number: max(number, 17))
    parts = evaluate_subgroups(cohort, table, n_bootstrap=5)
    assert [each.n_patients for each in parts] == [18, 6]


def test_an_empty_cell_is_a_level_and_rows_of_others_are_passed_over(cohort, tmp_path, caplog):
    rows = [(f"case_{n:02}", "" if n == 3 else "f") for n in range(N_PATIENTS)]
    path = write_table(tmp_path, ("case", "sex"), [*rows, ("case_99", "m")], separator="\t")
    parts = evaluate_subgroups(cohort, read_level_table(path), n_bootstrap=5)
    assert [(each.level, each.n_scans) for each in parts] == [("f", 23), ("not given", 1)]
    assert "not in this cohort: case_99" in caplog.text


def test_a_table_of_lesions_parts_lesions(cohort, tmp_path):
    rows = [
        (case, lesion, "lytic" if lesion == 1 else "sclerotic")
        for case, lesion in cohort.lesions.query("reference_id > 0")[
            ["case", "reference_id"]
        ].itertuples(index=False)
    ]
    path = write_table(tmp_path, ("case", "reference_id", "type"), rows)
    lytic, sclerotic = evaluate_subgroups(cohort, read_level_table(path), n_bootstrap=30)
    assert (lytic.n_lesions, sclerotic.n_lesions) == (20, 20)
    assert lytic.figures["detection"]["sensitivity_iou_0.1"].value == 1
    assert sclerotic.figures["detection"]["sensitivity_iou_0.1"].value < 1
    assert lytic.figures.keys() == {"detection", "lesion"}
    assert "fp_per_scan" not in lytic.figures["detection"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name,site\nx,1\n", DataError, "neither case nor patient_id"),
        ("case,site\na,1\na,2\n", DataError, "a twice"),
        ("case,site\na,1,2\n", DataError, "row 2 has another number of cells"),
        ("case,site,site\na,1,2\n", DataError, "columns site are there twice"),
        ("case,site\n", DataError, "no row"),
        ("", DataError, "no row"),
        ("case\na\n", UsageError, "no column beside its keys"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, text, error, message):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_level_table(path)


def test_cases_without_a_row_and_unknown_columns_are_named(cohort, tmp_path):
    path = write_table(tmp_path, ("case", "site"), [("case_00", 1)])
    with pytest.raises(DataError, match=r"no row for case_01, .* and 13 more\. Add them"):
        evaluate_subgroups(cohort, read_level_table(path))
    with pytest.raises(UsageError, match="no column sight to part the cohort by; it has site"):
        read_level_table(path, ["sight"])


def test_a_column_of_names_parts_nothing(cohort, tmp_path, caplog):
    table = of_patients(tmp_path, "name", lambda number: f"n{number}")
    assert evaluate_subgroups(cohort, table) == ()
    assert "24 different texts in column name" in caplog.text
    with pytest.raises(UsageError, match="at most 20"):
        evaluate_subgroups(cohort, read_level_table(table.path, ["name"]))


def test_the_command_prints_and_writes_subgroups(folders, tmp_path, capsys):
    pred, ref = folders
    rows = [(f"P{number:02}", "ab"[number > 3], number) for number in range(N_PATIENTS)]
    path = write_table(tmp_path, ("patient_id", "site", "age"), rows)
    out = tmp_path / "out"
    flags = ["--pred", str(pred), "--ref", str(ref), "--subgroups", str(path), "--by", "site"]
    assert main([*flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a *" in printed
    assert "fewer than 10 patients" in printed
    written = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["subgroups"]
    assert [(part["column"], part["level"], part["small"]) for part in written] == [
        ("site", "a", True),
        ("site", "b", False),
    ]
    table = pd.read_csv(out / "subgroups.csv")
    small = table[(table["level"] == "a") & (table["name"] == "dsc")].iloc[0]
    assert small["value"] == written[0]["figures"]["segmentation"]["dsc"]["value"]
    assert (small["n_patients"], small["small"]) == (4, True)


def test_nothing_is_printed_as_nan(cohort, tmp_path):
    table = of_patients(tmp_path, "half", lambda number: number % 2)
    assert "nan" not in format_subgroups(evaluate_subgroups(cohort, table, n_bootstrap=5))
