import json

import pytest
from pydantic import BaseModel

from bonemet_auto import plan_schema, result_schema, schema
from bonemet_auto.errors import DataError, ModelError
from bonemet_auto.geometry import Geometry
from bonemet_auto.plan_schema import NetworkPlan, Plan
from bonemet_auto.schema import (
    CaseLabels,
    DatasetInfo,
    GeometryRecord,
    parse_json,
    read_json,
    write_json,
)
from bonemet_auto.scope import scope_of
from tests.nominal import nominal
from tests.unit.inference_fakes import POINT
from tests.unit.training_fakes import make_network, stored_case, training_plan

PLAN = training_plan()
LESION = {
    "id": 1,
    "score": 0.9,
    "p_lung_metastasis": 0.1,
    "volume_mm3": 12.5,
    "box_voxel_zyx": (0, 1, 2, 3.5, 4, 5),
    "centroid_lps_mm": (1, -2, 3),
    "corners_lps_mm": [(0, 0, 0)] * 8,
}
PATIENT = {"probability": 0.5, "label": 1, "threshold": 0.25}
FINGERPRINT = {
    "case": "Fall Ä 1",
    "patient_id": "p",
    "input_hash": "0",
    "shape": (1, 2, 3),
    "spacing_mm": (1, 0.1, 1e-3),
    "lesions": [
        {"instance": 2, "source": None, "volume_mm3": 1, "size_mm": (1, 2, 3)}
        | {"share_outside_bone": 0, "touching": [3]}
    ],
    "patient_label": None,
    "orientation": "LPS",
    "body_histogram": [],
    "bone_histogram": [1, 2],
    "lesion_histogram": [],
}
RUN = {
    "command": "c",
    "bonemet_version": "0",
    "versions": {"torch": "2"},
    "device": "cpu",
    "flags": {"seed": "0"},
    "seed": None,
    "started": "s",
    "elapsed_s": 0.1,
    "cases_done": 1,
    "cases_failed": 0,
}
DATASET = {
    "name": "Spine",
    "channel_names": {"0": "CT"},
    "labels": {"other": 0, "lung_metastasis": 1},
    "numTraining": 3,
}
STORED = stored_case("a", (4, 5, 6), lesions=(((0, 1, 2, 3, 4, 5), None),), bone=((1, 1, 1),))
INSPECTED = schema.InspectedCase.model_validate(
    {"key": "training a", "stamps": [[1, 2], None], "labels": {"other": 0}, "patient_id": "p"}
    | {"warnings": ["odd"], "content_hashes": ["0"], "fingerprint": FINGERPRINT}
)
ARCHIVED = result_schema.ArchivedFile(size_bytes=0, sha256="00")
STUDY = result_schema.PrivateStudy(
    patient_id="4711", study_uid="1.2", series_uid="1.3", folder="ä/b"
)
EXAMPLES = [
    *(STUDY, result_schema.PrivateStudies(key="00ff", studies={"study_00": STUDY})),
    *(
        ARCHIVED,
        result_schema.ArchiveManifest(bonemet_version="0.1", files={"plan.json": ARCHIVED}),
    ),
    result_schema.PatientRuleRecord(name="head", weights=(0.5, -1.25), intercept=0.1),
    result_schema.ConsolidatedModel(
        bonemet_version="0.1",
        dataset="Dataset001_Ä",
        plan="default",
        folds=(0, 3),
        temperatures=(1.0, 1.25),
        patient_rule_reason="kept",
        cases=4,
        sha256={"plan.json": "00"},
    ),
    DatasetInfo.model_validate(DATASET),
    CaseLabels.model_validate({"instances": {"1": 0, "2": None}, "patient": 1}),
    GeometryRecord.of(Geometry((1, 2, 3), (0.1, 0.2, 0.3), (1 / 3, 2, 3))),
    schema.LesionFingerprint.model_validate(FINGERPRINT["lesions"][0]),
    schema.CaseFingerprint.model_validate(FINGERPRINT),
    schema.Fingerprint.model_validate({"dataset": "D", "cases": [FINGERPRINT]}),
    *(INSPECTED, schema.InspectionMemory(cases=(INSPECTED,))),
    schema.Splits(seed=1, validation=(("a", "b"), ())),
    *(PLAN, PLAN.network, PLAN.training, PLAN.augmentation, PLAN.inference, PLAN.target),
    scope_of(nominal(2)),
    *(STORED, STORED.lesions[0], POINT),
    result_schema.LesionRecord.model_validate(LESION),
    result_schema.PatientRecord.model_validate(PATIENT),
    result_schema.CasePrediction.model_validate(
        {"case": "a", "lesions": [LESION], "patient": PATIENT, "score_threshold": 0.5}
        | {"warnings": ["odd"]}
    ),
    schema.FailedCase(case="a", reason="r", fix="f"),
    result_schema.CaseCost(
        seconds={"read": 1.25, "network": 20.5},
        windows=12,
        windows_left_out=4,
        notes=("memory ran out with 2 windows at once; goes on with 1",),
    ),
    result_schema.RunReport.model_validate(RUN),
]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_what_is_written_is_read_back_and_written_alike(tmp_path, value):
    path = tmp_path / "ä.json"
    write_json(path, value)
    again = read_json(path, type(value))
    assert again == value
    first = path.read_bytes()
    write_json(path, again)
    assert path.read_bytes() == first


def test_every_schema_has_an_example():
    public = {
        item
        for item in (vars(schema) | vars(plan_schema) | vars(result_schema)).values()
        if isinstance(item, type) and issubclass(item, BaseModel)
    } - {BaseModel, schema.Ours, schema.Theirs}
    assert public == {type(value) for value in EXAMPLES}


def test_a_geometry_comes_back_from_its_record():
    geometry = Geometry((1, 2, 3), (0.1, 0.2, 0.3), (1, 2, 3), ((1, 0, 0), (0, 0, -1), (0, 1, 0)))
    assert GeometryRecord.of(geometry).geometry() == geometry


def edited(**changes):
    content = json.loads(PLAN.model_dump_json())
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
    return json.dumps(content)


def test_all_mistakes_of_a_file_are_named_with_their_paths(tmp_path):
    text = edited(training__epochs=-3, sd_hu="wide", network__widths=[8, "x"], batchsize=2)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError) as refused:
        read_json(tmp_path / "plan.json", Plan)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'plan.json'}: ") and "formats.md" in said
    for path in ("training.epochs: ", "sd_hu: ", "network.widths.1: ", "batchsize: "):
        assert path in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rat": 1}, "learning_rat: Extra inputs"),
        ({"network__kernel": [[3, 3, 3]]}, "network.kernel: Extra inputs"),
        ({"patch_size": [9, 16, 16]}, r"divisible by the total stride \(2, 4, 4\)"),
        ({"window_hu": [100, 100]}, "window_hu .* must rise"),
        ({"network__depths": [1]}, "one entry per stage"),
        ({"network__rpn_stages": [0, 2]}, "stage indices below 2"),
        ({"network__anchor_sizes": [[[3, 3, 3]]]}, "one list per entry of rpn_stages"),
        ({"training__lesion_share": 1.5}, "training.lesion_share"),
        ({"inference__overlap": 1}, "inference.overlap"),
        (
            {"augmentation": {"mirror_axes": [2]}, "inference__mirror_axes": [0, 2]},
            r"inference mirrors axes \[0\], which augmentation.mirror_axes lacks",
        ),
        ({"format_version": 2}, r"newer .*\(format_version 2, this one reads 1\); update"),
        ({"format_version": 0}, "format_version: Input should be 1"),
        ({"format_version": "2"}, "format_version: Input should be 1"),
    ],
)
def test_an_edited_plan_with_a_mistake_is_refused(changes, said):
    with pytest.raises(ModelError, match=said):
        parse_json(edited(**changes), Plan, "plan.json", ModelError)


@pytest.mark.parametrize(
    "changes",
    [
        {"network__strides": [[1, 2, 0], [2, 2, 2]]},
        {"network__kernels": [[1, 3, 3], [2, 3, 3]]},
        {"network__widths": [8, 0]},
        {"network__anchor_sizes": [[[3, 5, 5]], [[5, 9, 9], [8, 8, 8]]]},
        {"network__rpn_stages": [], "network__anchor_sizes": []},
        {"patch_size": [0, 16, 16]},
        {"spacing_mm": [0, 1, 1]},
        {"sd_hu": float("nan")},
        {"inference__mirror_axes": [3]},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_numbers_that_no_network_can_have_are_refused(changes):
    with pytest.raises(DataError, match="plan.json: "):
        parse_json(edited(**changes), Plan, "plan.json", DataError)


def test_total_strides_multiply_axis_by_axis():
    network = make_network(strides=((1, 2, 2), (2, 2, 3)))
    assert [network.total_stride(stage) for stage in (0, 1)] == [(1, 2, 2), (2, 4, 6)]


def test_an_empty_network_is_refused():
    nothing = {"widths": (), "depths": (), "strides": (), "kernels": ()}
    with pytest.raises(ValueError, match="stage"):
        make_network(**nothing, rpn_stages=(), anchor_sizes=())
    assert NetworkPlan.model_validate(make_network()) == make_network()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": '])
def test_what_is_no_such_json_is_refused_by_file_name(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset.json: file: "):
        read_json(tmp_path / "dataset.json", DatasetInfo)


def test_text_of_another_encoding_is_refused_and_a_byte_order_mark_is_not(tmp_path):
    path = tmp_path / "dataset.json"
    text = json.dumps(DATASET | {"name": "Hüfte"}, ensure_ascii=False)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"dataset.json.*UTF-8"):
        read_json(path, DatasetInfo)
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_json(path, DatasetInfo).name == "Hüfte"


def test_a_missing_file_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"plan.json does not exist. Plan first."):
        read_json(tmp_path / "plan.json", Plan, "Plan first.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"background": 0, "lesion": 2}}, "labels: .*without gaps"),
        ({"labels": {}}, "labels: .*without gaps"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "channel_names: .*one channel"),
        ({"channel_names": {"0": "MR"}}, "channel_names: .*one channel"),
    ],
)
def test_datasets_of_another_kind_are_refused(changes, said):
    with pytest.raises(DataError, match=said):
        parse_json(json.dumps(DATASET | changes), DatasetInfo, "dataset.json", DataError)


def test_other_keys_of_people_are_ignored_and_the_positive_class_is_the_named_one():
    info = DatasetInfo.model_validate(DATASET | {"licence": "CC0"})
    assert info.positive_class == 1
    renamed = {"labels": {"lung_metastasis": 0, "other": 1, "prostate": 2}}
    assert DatasetInfo.model_validate(DATASET | renamed).positive_class == 0
    unnamed = {"labels": {"benign": 0, "malignant": 1}}
    assert DatasetInfo.model_validate(DATASET | unnamed).positive_class == 1


def test_a_patient_entry_of_null_differs_from_none_at_all():
    assert (
        "patient" in CaseLabels.model_validate({"instances": {}, "patient": None}).model_fields_set
    )
    assert "patient" not in CaseLabels.model_validate({"instances": {}}).model_fields_set
