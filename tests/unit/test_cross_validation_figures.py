"""Figures over folds, each on its own validation cases."""

import shutil

import numpy as np
import pandas as pd
import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.cross_validation import pool, read_folds, spread_over_folds
from bonemet_auto.evaluation.evaluate import evaluate_cohort, evaluate_folders
from tests.unit.evaluation_fakes import write_cohort, write_found


@pytest.fixture
def folders(tmp_path):
    """Three folds of four cases, and all of them in one folder."""
    ref, together, results = (tmp_path / name for name in ("labelsTr", "together", "results"))
    write_cohort(ref)
    write_found(together)
    for fold in range(3):
        for path in together.iterdir():
            if path.is_file() and int(path.name[5:7]) % 3 == fold:
                validation = results / f"fold_{fold}" / "validation"
                validation.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, validation)
    (results / "fold_all").mkdir()
    return ref, together, results


def test_all_folds_pooled_are_the_figures_of_one_folder_with_their_cases(folders):
    ref, together, results = folders
    pooled = evaluate_cohort(pool(read_folds(results, ref)), n_bootstrap=30)
    whole = evaluate_folders(together, ref, n_bootstrap=30)
    assert pooled.figures == whole.figures
    pd.testing.assert_frame_equal(pooled.lesions, whole.lesions)


def test_mean_and_sd_are_those_of_the_folds(folders):
    ref, together, results = folders
    spreads = spread_over_folds(read_folds(results, ref))
    names = [f"case_{number:02}" for number in range(12)]
    values = [
        evaluate_folders(together, ref, 5, cases=names[fold::3]).figures["segmentation"]["dsc"]
        for fold in range(3)
    ]
    values = [figure.value for figure in values]
    dsc = spreads["segmentation"]["dsc"]
    assert list(dsc.folds) == ["fold_0", "fold_1", "fold_2"]
    assert list(dsc.folds.values()) == values
    assert (dsc.mean, dsc.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_a_figure_that_a_fold_lacks_is_left_out_of_mean_and_sd(folders):
    ref, _, results = folders
    for name in ("case_00", "case_06"):
        (ref / f"{name}.json").write_text('{"instances": {"1": null, "2": null}}', "utf-8")
    spreads = spread_over_folds(read_folds(results, ref))
    npv = spreads["patient"]["specificity"]
    assert npv.folds["fold_0"] is None
    assert npv.mean == pytest.approx(np.mean([npv.folds["fold_1"], npv.folds["fold_2"]]))
    no_fold = spreads["detection"]["sensitivity_above_20mm"]
    assert (no_fold.mean, no_fold.sd) == (None, None)


def test_the_command_prints_and_writes_the_spread(folders, tmp_path, capsys):
    ref, _, results = folders
    out = tmp_path / "out"
    assert main(["--folds", str(results), "--ref", str(ref), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mean and SD over 3 folds" in printed
    assert "nan" not in printed
    table = pd.read_csv(out / "folds.csv").set_index(["group", "name"])
    dsc = table.loc[("segmentation", "dsc")]
    assert dsc["mean"] == pytest.approx(dsc[["fold_0", "fold_1", "fold_2"]].mean())
    assert dsc["n_folds"] == 3
    assert (out / "metrics.json").is_file()


def test_cases_of_two_folds_or_without_a_reference_are_refused(folders):
    ref, together, results = folders
    (ref / "case_04.nii.gz").unlink()
    with pytest.raises(DataError, match="no reference of case_04"):
        read_folds(results, ref)
    shutil.copy(together / "case_04.nii.gz", results / "fold_0" / "validation")
    with pytest.raises(DataError, match=r"case_04 \(fold_0, fold_1\) validated more than one fold"):
        read_folds(results, ref)
    with pytest.raises(DataError, match="holds no predictions"):
        read_folds(together, ref)
