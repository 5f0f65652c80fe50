"""Two predictions of the same scans."""

import json

import numpy as np
import pandas as pd
import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.cohort import read_cohort
from bonemet_auto.evaluation.comparison import compare_cohorts, delong_difference
from bonemet_auto.evaluation.source import Estimates
from tests.unit.evaluation_fakes import write_cohort, write_found


@pytest.fixture
def folders(tmp_path):
    ref, first, second = (tmp_path / name for name in ("labelsTs", "first", "second"))
    write_cohort(ref)
    write_found(first, strength=1.5)
    write_found(second, seed=1, strength=0.3)
    return ref, first, second


@pytest.fixture
def cohorts(folders):
    ref, first, second = folders
    return read_cohort(first, ref), read_cohort(second, ref)


def test_every_difference_is_that_of_the_two_figures(cohorts):
    differences = compare_cohorts(*cohorts, n_bootstrap=300)
    for group, named in differences.items():
        for name, each in named.items():
            if None in (each.first, each.second):
                assert each.difference is None, (group, name)
                assert each.note, (group, name)
            else:
                assert each.difference == pytest.approx(each.first - each.second)
            if each.low is not None:
                assert each.low < each.high, (group, name)
    dsc = differences["segmentation"]["dsc"]
    assert dsc.low <= dsc.difference <= dsc.high


def test_turning_the_two_around_turns_every_sign_around(cohorts):
    there, back = (compare_cohorts(*pair, n_bootstrap=100) for pair in (cohorts, cohorts[::-1]))
    for name in ("auc", "auc_delong", "accuracy", "brier"):
        each, other = there["patient"][name], back["patient"][name]
        assert (each.difference, each.p_value) == (-other.difference, other.p_value)
        assert each.low == pytest.approx(-other.high)


def test_a_prediction_does_not_differ_from_itself(cohorts):
    differences = compare_cohorts(cohorts[0], cohorts[0], n_bootstrap=50)
    for named in differences.values():
        for each in named.values():
            assert each.difference in (0, None)
            assert each.low is each.high is None
    assert differences["patient"]["accuracy"].p_value == 1
    assert differences["patient"]["auc_delong"].note.startswith("patients; no test")


def test_pairing_makes_the_interval_of_a_small_common_gain_narrow():
    rng = np.random.default_rng(0)
    truth, rows = rng.random(200) < 0.5, np.arange(200)
    scores = truth + rng.normal(size=200)
    gained = scores + 0.1 * truth

    def estimates(values):
        return Estimates(values, truth, values > 0.5, rows, 200, "patients", "patients")

    paired = delong_difference(estimates(gained), estimates(scores))
    assert paired.p_value < 1e-3
    others = np.empty(200)
    for part in (truth, ~truth):  # the same AUC, of scores that know nothing of the first ones
        others[part] = rng.permutation(scores[part])
    unpaired = delong_difference(estimates(gained), estimates(others))
    assert unpaired.difference == pytest.approx(paired.difference)
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 4


def test_other_scans_are_refused(folders, cohorts, capsys):
    ref, first, second = folders
    (second / "case_07.nii.gz").unlink()
    flags = ["--pred", str(first), "--ref", str(ref), "--versus", str(second)]
    assert main(flags) == 2
    assert f"have no prediction in {second}: case_07" in capsys.readouterr().err
    fewer = read_cohort(first, ref, cases={"case_00", "case_01"})
    with pytest.raises(DataError, match=r"only one of the two predictions has case_02, case_03"):
        compare_cohorts(cohorts[0], fewer)


def test_the_command_prints_and_writes_the_comparison(folders, tmp_path, capsys):
    ref, first, second = folders
    out = tmp_path / "out"
    flags = ["--pred", str(first), "--ref", str(ref), "--versus", str(second)]
    assert main([*flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "difference (95 % interval)" in printed
    assert "paired DeLong test" in printed
    record = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert (record["first"], record["second"], record["n_patients"]) == (
        str(first),
        str(second),
        12,
    )
    accuracy = record["differences"]["patient"]["accuracy"]
    table = pd.read_csv(out / "comparison.csv").set_index(["group", "name"])
    assert table.loc[("patient", "accuracy"), "difference"] == accuracy["difference"]
    assert "McNemar" in accuracy["note"]


def test_flags_that_do_not_go_together_are_refused(folders, tmp_path, capsys):
    ref, first, second = (str(folder) for folder in folders)
    for flags in (
        ["--pred", first, "--by", "site"],
        ["--pred", first, "--versus", second, "--pred-on-reference", second],
        ["--folds", first, "--versus", second],
    ):
        assert main([*flags, "--ref", ref]) == 2
        assert "--" in capsys.readouterr().err
