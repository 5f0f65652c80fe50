import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from bonemet_auto.model import roi_align as module
from bonemet_auto.model.roi_align import ROI_CELLS_PER_EDGE, pyramid_levels, roi_align
from tests.property.slow_boxes import WINDOW, awkward_boxes, tensor

MAP = st.tuples(*[st.integers(1, 6)] * 3)
OUTPUT = st.tuples(*[st.integers(1, 3)] * 3)
STRIDE = st.tuples(*[st.sampled_from([1, 2, 4])] * 3)
BOX = st.tuples(*[st.floats(-8, 20)] * 3, *[st.floats(0, 16)] * 3).map(
    lambda b: [b[0], b[1], b[2], b[0] + b[3], b[1] + b[4], b[2] + b[5]]
)


@pytest.fixture(params=["looped", "gathered"], autouse=True, scope="module")
def both_ways(request):
    """A CPU works many values RoI by RoI and few ones as one batch; each way for all tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_GATHERED_VALUES", 0 if request.param == "looped" else 1 << 40)
        yield


def read(volume, point):
    """Trilinear reading of (C, Z, Y, X) at a point in cells, edge values outside: eight corners."""
    total = 0
    at = [min(max(p, 0.0), n - 1.0) for p, n in zip(point, volume.shape[1:], strict=True)]
    for corner in range(8):
        weight, cell = 1.0, []
        for axis in range(3):
            low = math.floor(at[axis])
            upper = corner >> axis & 1
            weight *= at[axis] - low if upper else 1 - (at[axis] - low)
            cell.append(min(low + upper, volume.shape[axis + 1] - 1))
        total = total + weight * volume[:, cell[0], cell[1], cell[2]]
    return total


def naive(features, boxes, image_index, stride, output_size, samples):
    """Reading by reading and bin by bin."""
    pooled = features.new_zeros(len(boxes), features.shape[1], *output_size)
    for k, (box, image) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
        fine = [n * samples for n in output_size]
        for index in torch.cartesian_prod(*[torch.arange(n) for n in fine]).reshape(-1, 3).tolist():
            point = [
                (box[a] + (box[a + 3] - box[a]) * (index[a] + 0.5) / fine[a]) / stride[a] - 0.5
                for a in range(3)
            ]
            z, y, x = (i // samples for i in index)
            pooled[k, :, z, y, x] += read(features[image], point) / samples**3
    return pooled


def channels_last(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.contiguous(memory_format=torch.channels_last_3d)


@settings(deadline=None, max_examples=40)
@given(
    MAP,
    st.one_of(st.lists(BOX, max_size=3), awkward_boxes(max_size=3)),
    STRIDE,
    OUTPUT,
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_values_and_gradient_equal_the_naive_sampler(shape, boxes, stride, output, samples, seed):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 6)
    image = torch.arange(len(boxes)) % 2
    features = channels_last((2, 3, *shape), seed).requires_grad_()
    found = roi_align(features, boxes, image, stride, output, samples)
    expected = naive(features, boxes, image, stride, output, samples)
    # Bins lie at float32 fractions of a box, which may be ten cells long.
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)
    grad = channels_last(found.shape, seed + 1)
    (found_grad,) = torch.autograd.grad(found, features, grad)
    if len(boxes):
        (expected_grad,) = torch.autograd.grad(expected, features, grad)
        torch.testing.assert_close(found_grad, expected_grad, atol=2e-6, rtol=1e-6)
    else:
        assert not found_grad.any()


def gathered(features, windows, mz, my, mx):
    """The batched form, as other devices run it."""
    rows = features.flatten(0, 3)
    return torch.cat(
        [
            module._interpolate(rows[cells], mz[rois], my[rois], mx[rois])
            for rois, cells in module._gathers(windows, features.shape, (mz, my, mx))
        ]
    )


def test_the_batched_form_of_other_devices_reads_the_same():
    generator = torch.Generator().manual_seed(3)
    features = channels_last((2, 4, 5, 6, 7), 0)
    low = torch.rand(70, 3, generator=generator, dtype=torch.float64) * 10 - 2
    edge = torch.rand(70, 3, generator=generator, dtype=torch.float64) * 8
    boxes, image = torch.cat((low, low + edge), dim=1), torch.arange(70) % 2
    expected = roi_align(features, boxes, image, (1, 2, 1), (2, 3, 4))
    windows, matrices = [image], []
    for axis, (step, bins) in enumerate([(1, 2), (2, 3), (1, 4)]):
        first, length, matrix = module._axis_matrices(
            boxes[:, axis] / step, boxes[:, axis + 3] / step, bins, 2, features.shape[axis + 2]
        )
        windows += [first, length]
        matrices.append(matrix)
    found = gathered(features.permute(0, 2, 3, 4, 1), torch.stack(windows, 1), *matrices)
    torch.testing.assert_close(found.permute(0, 4, 1, 2, 3), expected)


def test_gradcheck_in_double_precision():
    features = channels_last((1, 2, 3, 4, 3), 0).requires_grad_()
    boxes = torch.tensor([[0.5, 1, 0, 5, 7, 5.5], [2, 2, 2, 3, 3, 3]], dtype=torch.float64)
    index = torch.zeros(2, dtype=torch.long)
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, boxes, index, (2, 2, 2), (2, 1, 2)), features
    )


@given(st.tuples(*[st.floats(2, 10)] * 3), st.tuples(*[st.floats(0.5, 12)] * 3), STRIDE)
@settings(deadline=None)
def test_a_linear_ramp_reads_the_voxel_coordinate_of_each_bin_centre(low, edge, stride):
    shape = [math.ceil(40 / step) for step in stride]
    axes = [(torch.arange(n) + 0.5) * step for n, step in zip(shape, stride, strict=True)]
    ramps = torch.stack(torch.meshgrid(*axes, indexing="ij"))[
        None
    ]  # channel a holds axis a in voxels
    box = torch.tensor([[*low, *[a + b for a, b in zip(low, edge, strict=True)]]])
    pooled = roi_align(ramps, box, torch.tensor([0]), stride, (2, 3, 4))[0]
    for axis, bins in enumerate((2, 3, 4)):
        centres = low[axis] + edge[axis] * (torch.arange(bins) + 0.5) / bins
        expected = centres.view([-1 if a == axis else 1 for a in range(3)]).expand(2, 3, 4)
        torch.testing.assert_close(pooled[axis], expected, atol=1e-4, rtol=1e-5)


@settings(deadline=None)
@given(awkward_boxes(), STRIDE, OUTPUT, st.integers(1, 3))
def test_a_linear_ramp_goes_on_at_its_edge_value_outside_the_map(boxes, stride, output, samples):
    """Where a box leaves the map, each reading is that of the nearest cell centre inside."""
    cells = [math.ceil(n / step) for n, step in zip(WINDOW, stride, strict=True)]
    axes = [(torch.arange(n) + 0.5) * step for n, step in zip(cells, stride, strict=True)]
    ramps = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].double()
    pooled = roi_align(
        ramps, tensor(boxes), torch.zeros(len(boxes)).long(), stride, output, samples
    )
    assert pooled.shape == (len(boxes), 3, *output)
    for box, found in zip(boxes, pooled, strict=True):
        for axis, bins in enumerate(output):
            ticks = (torch.arange(bins * samples) + 0.5) / (bins * samples)
            read = box[axis] + (box[axis + 3] - box[axis]) * ticks.double()
            read = read.clamp(axes[axis][0], axes[axis][-1]).view(bins, samples).mean(dim=1)
            expected = read.view([-1 if a == axis else 1 for a in range(3)]).expand(output)
            torch.testing.assert_close(found[axis], expected, atol=1e-4, rtol=1e-5)


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(0, 3)] * 3),
    OUTPUT,
    st.integers(1, 3),
    STRIDE,
    st.integers(0, 99),
)
def test_over_whole_cells_a_bin_is_the_average_of_its_cells(first, output, samples, stride, seed):
    """With as many readings as cells, and so the mean of all bins is that of the whole box."""
    ends = [a + n * samples for a, n in zip(first, output, strict=True)]
    features = channels_last((1, 2, *(end + 1 for end in ends)), seed)
    box = [a * step for a, step in zip([*first, *ends], [*stride, *stride], strict=True)]
    pooled = roi_align(features, tensor([box]), torch.tensor([0]), stride, output, samples)[0]
    inside = features[(0, slice(None), *(slice(a, b) for a, b in zip(first, ends, strict=True)))]
    expected = functional.avg_pool3d(inside, samples)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        pooled.mean(dim=(1, 2, 3)), inside.mean(dim=(1, 2, 3)), atol=1e-5, rtol=1e-5
    )


@settings(deadline=None)
@given(awkward_boxes(), STRIDE, OUTPUT, st.integers(1, 3))
def test_every_bin_is_an_average_so_no_gradient_is_made_or_lost(boxes, stride, output, samples):
    features = channels_last((2, 2, *WINDOW), 0).requires_grad_()
    image = torch.arange(len(boxes)) % 2
    pooled = roi_align(features, tensor(boxes), image, stride, output, samples)
    assert (pooled <= features.max() + 1e-6).all() and (pooled >= features.min() - 1e-6).all()
    (gradient,) = torch.autograd.grad(pooled, features, torch.ones_like(pooled))
    received = gradient.sum(dim=(2, 3, 4))
    given_out = torch.bincount(image, minlength=2).double() * math.prod(output)
    torch.testing.assert_close(received, given_out[:, None].expand(2, 2), atol=1e-4, rtol=1e-5)
    for i, box in enumerate(boxes):
        twin = boxes.index(box)
        if image[twin] == image[i]:
            assert torch.equal(pooled[twin], pooled[i])


def test_a_box_far_outside_reads_the_nearest_corner():
    features = channels_last((1, 2, 3, 3, 3), 5)
    box = torch.tensor([[50.0, 50, -60, 60, 60, -50]])
    pooled = roi_align(features, box, torch.tensor([0]), (1, 1, 1), (2, 2, 2))[0]
    torch.testing.assert_close(pooled, features[0, :, 2, 2, 0].view(2, 1, 1, 1).expand(2, 2, 2, 2))


def test_layout_does_not_matter_and_bfloat16_stays_so():
    features = channels_last((1, 4, 5, 5, 5), 6).float()
    box, index = torch.tensor([[0.5, 0, 1, 4, 5, 3]]), torch.tensor([0])
    pooled = roi_align(features, box, index, (1, 1, 1), (2, 2, 2))
    torch.testing.assert_close(
        roi_align(features.contiguous(), box, index, (1, 1, 1), (2, 2, 2)), pooled
    )
    with torch.autocast("cpu", torch.bfloat16):
        same = roi_align(features, box, index, (1, 1, 1), (2, 2, 2))
    assert torch.equal(same, pooled)
    half = roi_align(features.bfloat16(), box, index, (1, 1, 1), (2, 2, 2))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), pooled, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("edges", "level"), [((7, 7, 7), 0), ((14, 14, 14), 1), ((1, 1, 1), 0), ((900, 900, 900), 2)]
)
def test_level_follows_the_box_size(edges, level):
    strides = [(ROI_CELLS_PER_EDGE / 7,) * 3, (2, 2, 2), (4, 4, 4)]
    box = torch.tensor([[3.0, 3, 3, *(3.0 + edge for edge in edges)]])
    assert pyramid_levels(box, strides).tolist() == [level]


def test_level_counts_all_three_axes_of_box_and_stride():
    strides = [(1, 4, 4), (2, 8, 8)]
    edge = ROI_CELLS_PER_EDGE
    flat = torch.tensor(
        [[0, 0, 0, edge, 4 * edge, 4 * edge], [0, 0, 0, 8 * edge, 8 * edge, 2 * edge]]
    )
    assert pyramid_levels(flat, strides).tolist() == [0, 1]
    assert pyramid_levels(torch.zeros(0, 6), strides).shape == (0,)
