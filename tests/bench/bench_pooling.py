"""RoIAlign beside `grid_sample`."""

import torch
from torch.nn import functional

from bonemet_auto.model.roi_align import roi_align
from tests.bench.side_by_side import compare

EDGES = (4, 14)
SAMPLES = 2


def pooling() -> None:
    cases = [(256, 64, 7, (32, 64, 64), 10), (16, 64, 14, (16, 32, 32), None)]
    cases.append((32, 32, 7, (16, 32, 32), None))
    for count, channels, bins, size, target in cases:
        naive_in = torch.randn(2, channels, *size).requires_grad_()
        ours_in = naive_in.detach().contiguous(memory_format=torch.channels_last_3d)
        ours_in.requires_grad_()
        edge = EDGES[0] + (EDGES[1] - EDGES[0]) * torch.rand(count, 3)
        low = torch.rand(count, 3) * (torch.tensor(size) - edge)
        boxes, index = torch.cat((low, low + edge), dim=1), torch.arange(count) // (count // 2)
        grad = torch.randn(count, channels, *(bins,) * 3)
        ours_grad = grad.contiguous(memory_format=torch.channels_last_3d)

        def ours(x=ours_in, boxes=boxes, index=index, bins=bins):
            return roi_align(x, boxes, index, (1, 1, 1), (bins,) * 3, SAMPLES)

        def naive(x=naive_in, boxes=boxes, index=index, bins=bins):
            return sampled(x, boxes, index, bins)

        def ours_both(ours=ours, x=ours_in, grad=ours_grad):
            return torch.autograd.grad(ours(), x, grad)[0]

        def naive_both(naive=naive, x=naive_in, grad=grad):
            return torch.autograd.grad(naive(), x, grad)[0]

        torch.testing.assert_close(ours(), naive(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours_both(), naive_both(), atol=1e-4, rtol=1e-4)
        name = f"roi_align {count} RoIs, {channels} channels, {bins}^3"
        with torch.no_grad():
            compare(f"{name}, forward, to grid_sample", ours, naive, target)
        compare(f"{name}, both, to grid_sample", ours_both, naive_both, target)


def sampled(features, boxes, image_index, bins):
    """RoIAlign of stride 1: one `grid_sample` per image, its RoIs stacked along depth."""
    shape, fine = torch.tensor(features.shape[2:]), SAMPLES * bins
    ticks = (torch.arange(fine) + 0.5) / fine
    pooled = []
    for image, one in enumerate(features.split(1)):
        rois = boxes[image_index == image]
        at = rois[:, :3, None] + (rois[:, 3:] - rois[:, :3])[:, :, None] * ticks
        z, y, x = (2 * at / shape[:, None] - 1).unbind(dim=1)
        size = (len(rois), fine, fine, fine)
        grid = torch.stack(
            (
                x[:, None, None, :].expand(size),
                y[:, None, :, None].expand(size),
                z[:, :, None, None].expand(size),
            ),
            dim=-1,
        )
        read = functional.grid_sample(
            one, grid.flatten(0, 1)[None], padding_mode="border", align_corners=False
        )
        bin_means = functional.avg_pool3d(read, SAMPLES)[0]
        pooled.append(bin_means.unflatten(1, (len(rois), bins)).transpose(0, 1))
    return torch.cat(pooled)
