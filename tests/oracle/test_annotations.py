"""Other programs write SEG and RTSTRUCT from masks; the same masks must come out here."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from bonemet_auto.convert.annotations import read_annotation
from bonemet_auto.convert.contours import read_contours
from bonemet_auto.convert.segments import read_segments
from bonemet_auto.images import Volume, to_sitk
from tests.dicom_fakes import write_series
from tests.oracle.record_rt_utils import GEOMETRY, mask

CODES = {
    "SegmentedPropertyCategoryCodeSequence": ("49755003", "Morphologically Altered Structure"),
    "SegmentedPropertyTypeCodeSequence": ("108369006", "Neoplasm"),
}


def drawn(voxels):
    found = np.zeros(GEOMETRY.shape, dtype=bool)
    found[tuple(voxels.T)] = True
    return found


def test_contours_that_rt_utils_traced_give_its_mask():
    path = Path(__file__).with_name("rt_utils.dcm")
    np.testing.assert_array_equal(drawn(read_contours(path, [1], GEOMETRY)[1]), mask())
    (region,) = read_annotation(path, "RTSTRUCT").regions
    assert region.label == "traced" and region.may_be_lesion


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("itkimage2segimage") is None, reason="dcmqi is not installed")
def test_segments_that_dcmqi_wrote_give_its_mask(tmp_path):
    second = np.zeros(GEOMETRY.shape, dtype=bool)
    second[5:, 20:24, 3:9] = True
    values = (mask() * 1 + second * 2).astype(np.uint16)
    write_series(tmp_path / "ct", Volume(np.zeros(GEOMETRY.shape, np.int16), GEOMETRY))
    # Turned around, so that its order of voxels is not that of the slices.
    image = sitk.Flip(to_sitk(Volume(values, GEOMETRY)), [True, True, False])
    sitk.WriteImage(image, str(tmp_path / "label.nrrd"))
    segments = [
        {"labelID": number, "SegmentLabel": f"Met {number}", "SegmentDescription": "",
         "SegmentAlgorithmType": "MANUAL", "recommendedDisplayRGBValue": [255, 0, 0]}
        | {name: {"CodeValue": code, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}
           for name, (code, meaning) in CODES.items()}
        for number in (1, 2)
    ]  # fmt: skip
    about = {
        "ContentCreatorName": "x", "ClinicalTrialSeriesID": "1", "ClinicalTrialTimePointID": "1",
        "SeriesDescription": "s", "SeriesNumber": "300", "InstanceNumber": "1",
        "BodyPartExamined": "", "segmentAttributes": [segments],
    }  # fmt: skip
    (tmp_path / "about.json").write_text(json.dumps(about))
    path = tmp_path / "seg.dcm"
    command = [
        "itkimage2segimage", "--inputImageList", "label.nrrd", "--inputDICOMDirectory", "ct",
        "--inputMetadata", "about.json", "--outputDICOM", "seg.dcm",
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    annotation = read_annotation(path, "SEG")
    assert [region.label for region in annotation.regions] == ["Met 1", "Met 2"]
    assert annotation.series_uids == {"1.2.3.4"}
    found = read_segments(path, [1, 2], GEOMETRY)
    for number in (1, 2):
        np.testing.assert_array_equal(drawn(found[number]), values == number)
