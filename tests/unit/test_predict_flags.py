"""Flags of prediction that change how the plan looks at windows."""

import logging
from argparse import Namespace

import pytest

from bonemet_auto.commands.prediction_input import with_inference
from tests.tiny_model import PLAN


def asked(overlap=None, no_mirrors=False):
    return with_inference(PLAN, Namespace(overlap=overlap, no_mirrors=no_mirrors)).inference


def test_without_flags_the_plan_holds(caplog):
    assert asked() == PLAN.inference and not caplog.records
    assert asked(overlap=PLAN.inference.overlap) == PLAN.inference and not caplog.records


@pytest.mark.parametrize(("given", "taken"), [(0.0, 0.0), (0.25, 0.25), (1.0, 0.9)])
def test_another_overlap_is_taken_and_told(caplog, given, taken):
    with caplog.at_level(logging.WARNING):
        assert asked(overlap=given).overlap == taken
    assert f"overlap is {taken}, and the model's thresholds" in caplog.text


def test_mirrors_are_left_out_and_that_is_told(caplog):
    plan = PLAN.model_copy(
        update={"inference": PLAN.inference.model_copy(update={"mirror_axes": (2,)})}
    )
    with caplog.at_level(logging.WARNING):
        found = with_inference(plan, Namespace(overlap=None, no_mirrors=True)).inference
    assert found.mirror_axes == () and "(2,)" in caplog.text
