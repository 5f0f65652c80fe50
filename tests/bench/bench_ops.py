"""Time the 3D operations against their obvious versions: `python tests/bench/bench_ops.py`.

Both run in one process, taking turns, and the ratio of medians is printed: it holds on another or a
busy machine, where milliseconds do not. One thread, process time.
"""

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from bonemet_auto.model.boxes import nms, pairwise_iou
from bonemet_auto.model.depthwise import DepthwiseConv3d
from bonemet_auto.model.roi_align import roi_align

SECONDS_EACH = 0.5


def compare(name: str, ours: Callable[[], object], naive: Callable[[], object]) -> None:
    ours(), naive()
    times_s: tuple[list[float], list[float]] = ([], [])
    start_s = time.perf_counter()
    while len(times_s[0]) < 3 or time.perf_counter() - start_s < 2 * SECONDS_EACH:
        for taken, run in zip(times_s, (ours, naive), strict=True):
            before_s = time.process_time()
            run()
            taken.append(time.process_time() - before_s)
    one, other = (sorted(taken)[len(taken) // 2] * 1000 for taken in times_s)
    print(f"{name:62s} {one:9.2f} ms  {other:9.2f} ms  x{other / one:.1f}")


def depthwise() -> None:
    shapes = [(24, 32), (48, 16), (96, 8), (160, 4)]
    cases = [((3, 3, 3), *s) for s in shapes]
    cases += [((1, 3, 3), *shapes[0]), *[((k, k, k), 48, 16) for k in (5, 7)]]
    for kernel, channels, edge in cases:
        conv = DepthwiseConv3d(channels, kernel)
        grad = torch.randn(2, channels, edge, edge, edge)
        for layout in (torch.channels_last_3d, torch.contiguous_format):
            inputs = torch.randn_like(grad).contiguous(memory_format=layout).requires_grad_()
            out = grad.contiguous(memory_format=layout)
            nhwc = inputs.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            nhwc_out = grad.contiguous(memory_format=torch.channels_last_3d)

            def naive(conv=conv, inputs=inputs, out=out):
                padding = [edge // 2 for edge in conv.kernel]
                functional.conv3d(
                    inputs, conv.weight, conv.bias, padding=padding, groups=len(conv.weight)
                ).backward(out)

            def ours(conv=conv, nhwc=nhwc, nhwc_out=nhwc_out):
                conv(nhwc).backward(nhwc_out)

            against = "channels-last" if layout == torch.channels_last_3d else "channels-first"
            size = f"[2, {channels}, {edge}^3] k={kernel}"
            compare(f"depthwise {size} to {against}", ours, naive)


def greedy_loop(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    order = scores.argsort(descending=True, stable=True).tolist()
    overlap = pairwise_iou(boxes, boxes) > threshold
    alive, kept = torch.ones(len(boxes), dtype=torch.bool), []
    for i in order:
        if alive[i]:
            kept.append(i)
            alive &= ~overlap[i]
    return kept


def suppression() -> None:
    for n, objects in [(1000, 40), (1000, 1000), (4000, 160)]:
        low = (torch.rand(objects, 3) * 300).repeat(n // objects, 1) + torch.randn(n, 3)
        boxes, scores = torch.cat((low, low + 12), dim=1), torch.rand(n)
        assert nms(boxes, scores, 0.3).tolist() == greedy_loop(boxes, scores, 0.3)
        compare(
            f"nms {n} boxes of {objects} objects to matrix and loop",
            lambda boxes=boxes, scores=scores: nms(boxes, scores, 0.3),
            lambda boxes=boxes, scores=scores: greedy_loop(boxes, scores, 0.3),
        )


def sampled(features, boxes, image_index, bins):
    """RoIAlign of stride 1 and 2 samples per bin by grid_sample."""
    shape = torch.tensor(features.shape[2:])
    pooled = []
    for box, image in zip(boxes, image_index.tolist(), strict=True):
        ticks = (torch.arange(2 * bins) + 0.5) / (2 * bins)
        axes = [2 * (box[a] + (box[a + 3] - box[a]) * ticks) / shape[a] - 1 for a in range(3)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]
        read = functional.grid_sample(
            features[image : image + 1], grid, padding_mode="border", align_corners=False
        )
        pooled.append(functional.avg_pool3d(read, 2)[0])
    return torch.stack(pooled)


def pooling() -> None:
    for count, channels, bins in [(64, 64, 7), (16, 64, 14), (32, 32, 7)]:
        features = torch.randn(2, channels, 16, 32, 32)
        low = torch.rand(count, 3) * torch.tensor([8.0, 20, 20])
        boxes = torch.cat((low, low + 4 + 6 * torch.rand(count, 3)), dim=1)
        index = torch.arange(count) % 2
        channels_last = features.contiguous(memory_format=torch.channels_last_3d)
        ours_in, naive_in = channels_last.requires_grad_(), features.clone().requires_grad_()

        def ours(x=ours_in, boxes=boxes, index=index, bins=bins):
            return roi_align(x, boxes, index, (1, 1, 1), (bins,) * 3)

        def naive(x=naive_in, boxes=boxes, index=index, bins=bins):
            return sampled(x, boxes, index, bins)

        torch.testing.assert_close(ours(), naive(), atol=1e-4, rtol=1e-4)
        name = f"roi_align {count} RoIs, {channels} channels, {bins}^3"
        with torch.no_grad():
            compare(f"{name}, forward to grid_sample", ours, naive)
        compare(
            f"{name}, both to grid_sample",
            lambda: ours().sum().backward(),
            lambda: naive().sum().backward(),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'operation':62s} {'ours':>12s}  {'naive':>12s}  ratio")
    depthwise()
    suppression()
    pooling()
