import json

import pytest

from bonemet_auto.errors import DataError
from bonemet_auto.plan_file import inherits, read_plan
from bonemet_auto.schema import write_json
from tests.unit.training_fakes import training_plan

PLAN = training_plan()


@pytest.fixture
def plans(tmp_path):
    """A folder of plans with one that was made, and a way to write others by hand."""
    write_json(tmp_path / "default" / "plan.json", PLAN)

    def write(name, content):
        path = tmp_path / name / "plan.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_a_plan_takes_what_it_does_not_say_from_another(plans, tmp_path):
    edits = {"batch_size": 1, "training": {"learning_rate": 0.5}, "window_hu": [-1, 1]}
    path = plans("mine", {"inherits_from": "default", **edits})
    plan = read_plan(path, "")
    training = PLAN.training.model_copy(update={"learning_rate": 0.5})
    changes = {"name": "mine", "batch_size": 1, "training": training, "window_hu": (-1.0, 1.0)}
    assert plan == PLAN.model_copy(update=changes)
    assert inherits(path) and not inherits(tmp_path / "default" / "plan.json")
    again = read_plan(plans("second", {"inherits_from": "mine", "batch_size": 3}), "")
    assert (again.name, again.batch_size, again.window_hu) == ("second", 3, (-1.0, 1.0))


def test_a_plan_that_was_made_reads_as_it_is(tmp_path, plans):
    assert read_plan(tmp_path / "default" / "plan.json", "") == PLAN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inherits_from": "gone"}, "inherits from plan 'gone': make that first"),
        ({"inherits_from": "mine"}, "in a circle \\(mine -> mine\\)"),
        ({"inherits_from": 3}, "must be the name of a plan"),
        ({"inherits_from": "default", "patch_sise": [8, 8, 8]}, "patch_sise"),
        ({"inherits_from": "default", "patch_size": [7, 8, 8]}, "must be divisible"),
        ("{", "not JSON"),
        ("[]", "found list"),
    ],
)
def test_mistakes_name_the_file(plans, content, message):
    path = plans("mine", content)
    with pytest.raises(DataError, match=message) as caught:
        read_plan(path, "")
    assert "mine" in str(caught.value)


def test_a_missing_plan_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="Plan first"):
        read_plan(tmp_path / "none" / "plan.json", "Plan first.")
    assert not inherits(tmp_path / "none" / "plan.json")
