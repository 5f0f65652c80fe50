"""Sources estimated on the references' own lesions, beside those end to end."""

import pandas as pd
import pytest

from bonemet_auto.commands.evaluate import main
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.cohort import read_cohort
from bonemet_auto.evaluation.evaluate import evaluate_cohort
from bonemet_auto.evaluation.on_reference import is_on_reference, read_on_reference
from tests.unit.evaluation_fakes import write_cohort, write_found, write_on_reference
from tests.unit.test_evaluation_folders import LESION, SECOND, SHIFTED, write_prediction


@pytest.fixture
def folders(tmp_path):
    ref, found, drawn = (tmp_path / name for name in ("labelsTs", "found", "drawn"))
    write_cohort(ref)
    write_found(found)
    write_on_reference(drawn)
    return ref, found, drawn


def test_both_regimes_count_what_they_say(folders):
    ref, found, drawn = folders
    on_reference = read_on_reference(drawn, ref)
    figures = evaluate_cohort(read_cohort(found, ref), on_reference, n_bootstrap=50).figures
    assert figures["lesion_on_reference"]["source_auc"].n == 20
    assert figures["lesion_on_reference"]["source_accuracy"].value == 1
    assert figures["lesion"]["source_auc"].n < 20
    assert figures["patient"]["accuracy"].n == 12
    patients = figures["patient_on_reference"]
    assert (patients["accuracy"].n, patients["accuracy"].value) == (10, 1)
    assert patients["brier"].value == pytest.approx((4 * 0.2**2 + 6 * 0.3**2) / 10)
    assert patients["accuracy"].note.startswith("patients; 2 without annotated lesions left out")
    assert patients.keys() == figures["patient"].keys()


def test_lesions_that_are_not_the_references_are_refused_by_name(folders):
    ref, found, drawn = folders
    write_prediction(drawn, "case_03", {1: SHIFTED, 2: SECOND}, {1: (1.0, 0.5), 2: (1.0, 0.5)})
    write_prediction(drawn, "case_05", {7: LESION}, {7: (1.0, 0.5)})
    with pytest.raises(DataError, match=r"case_03, case_05 are not those of .*--lesions"):
        read_on_reference(drawn, ref)
    with pytest.raises(DataError, match="are not those of"):
        read_on_reference(found, ref)


def test_the_command_writes_both_regimes(folders, tmp_path, capsys):
    ref, found, drawn = folders
    out = tmp_path / "out"
    flags = ["--pred", str(found), "--ref", str(ref), "--out", str(out)]
    assert main([*flags, "--pred-on-reference", str(drawn)]) == 0
    assert "patient_on_reference" in capsys.readouterr().out
    curves = pd.read_csv(out / "decision_curve.csv")
    groups = ["lesion", "patient", "lesion_on_reference", "patient_on_reference"]
    assert curves["group"].unique().tolist() == groups
    assert len(pd.read_csv(out / "lesions_on_reference.csv")) == 20
    assert len(pd.read_csv(out / "patients_on_reference.csv")) == 12


def test_predictions_whose_lesions_were_drawn_are_told_from_others(folders, caplog):
    ref, found, drawn = folders
    assert is_on_reference(read_cohort(drawn, ref))
    assert not is_on_reference(read_cohort(found, ref))
    assert main(["--pred", str(drawn), "--ref", str(ref)]) == 0
    assert "give it as --pred-on-reference" in caplog.text
