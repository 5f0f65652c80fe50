"""The closed formula of the memory against the network itself on fake tensors and on real ones."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bonemet_auto.model.footprint import measure_footprint
from bonemet_auto.model.losses import dense_loss
from bonemet_auto.model.mask_rcnn import LESION_WEIGHT, build_model
from bonemet_auto.plan_schema import NetworkPlan
from planners.memory import Blueprint, gradient_bytes, parameters, saved_bytes
from tests.unit.training_fakes import make_network

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking: each example takes a second."""


@st.composite
def networks(draw: st.DrawFn) -> NetworkPlan:
    stages = draw(st.integers(2, 4))
    strides = [(draw(st.integers(1, 2)), 2, 2) for _ in range(stages)]
    rpn = sorted(draw(st.sets(st.integers(0, stages - 1), min_size=1)))
    return NetworkPlan(
        widths=tuple(draw(st.sampled_from([8, 24, 40])) for _ in range(stages)),
        depths=tuple(draw(st.integers(0, 2)) for _ in range(stages)),
        strides=tuple(strides),
        kernels=tuple((draw(st.sampled_from([1, 3])), 3, 3) for _ in range(stages)),
        skip_width=draw(st.sampled_from([8, 16])),
        neck_width=draw(st.sampled_from([16, 32])),
        rpn_stages=tuple(rpn),
        anchor_sizes=(((4.0, 4.0, 4.0), (8.0, 8.0, 8.0)),) * len(rpn),
        drop_path=0.0,
        checkpointed=draw(st.booleans()),
    )


@given(networks(), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=10, deadline=None, phases=QUICK)
def test_the_formula_agrees_with_the_network_on_fake_tensors(network, cells, windows, mixed):
    total = network.total_stride(len(network.widths) - 1)
    patch = tuple(max(16, stride * 2) * cells for stride in total)
    found = measure_footprint(network, patch, windows, mixed)
    blueprint = Blueprint.of(network)
    assert found.parameters == parameters(blueprint)
    formula = saved_bytes(blueprint, patch, windows, 2 if mixed else 4)
    assert formula == pytest.approx(found.saved, rel=0.03)
    peak = formula + gradient_bytes(blueprint, patch, windows, 2 if mixed else 4)
    assert found.saved <= found.peak <= 1.03 * peak


def test_fake_tensors_keep_what_real_ones_keep():
    """Without RoI heads, whose boxes real training finds by their values."""
    network = make_network()
    model, kept = build_model(network), {}
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    patch = (16, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trunk = model.look(torch.zeros(2, 1, *patch))
        lesion = torch.zeros(2, *patch)
        found = model.propose(trunk)
        loss = dense_loss(trunk.dense_logits, lesion, LESION_WEIGHT)
        loss = loss + model.coarse_loss(trunk, lesion)
        loss = loss + found.objectness.sum() + found.deltas.sum()
    real = sum(size for size, _ in kept.values())
    without_heads = saved_bytes(Blueprint.of(network), patch, 2, 4) - _heads(network)
    assert without_heads == pytest.approx(real, rel=0.02)


def _heads(network: NetworkPlan) -> int:
    from planners.memory import _head_bytes

    return _head_bytes(network.neck_width, 2, 4)
