"""A training step of a GPU plan on paper: arithmetic, traffic and launches of every operation.

    python -m tests.bench.gpu_on_paper --gpu-memory 24

Nothing is measured: the planned network runs forward and backward on meta tensors in bfloat16,
every operation is counted with the bytes it reads and writes, and a roofline of an H100-class GPU
(790 TFLOP/s bfloat16 in matrix units, 60 TFLOP/s float32 outside them, 4.3 TB/s, 5 us a launch)
gives the least time. Depthwise convolutions run outside the matrix units. Boxes are as many as
training takes.
"""

import argparse
from collections import Counter, defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from bonemet_auto.geometry import Index
from bonemet_auto.model.footprint import _losses
from bonemet_auto.model.mask_rcnn import MaskRCNN, assemble_model
from bonemet_auto.plan_schema import Target
from planners import PLANNERS
from tests.nominal import nominal

MATRIX_FLOPS, VECTOR_FLOPS, BYTES_S, LAUNCH_S = 790e12, 60e12, 4.3e12, 5e-6
PARTS = {
    "trunk.skip": "full resolution",
    "dense": "full resolution",
    "trunk.downsamples.0": "stem",
    "depthwise": "depthwise",
    "trunk.stages": "blocks without depthwise",
    "trunk": "other of the trunk",
    "neck": "neck",
    "coarse_logits": "neck",
    "rpn": "RPN",
    "mask_head": "RoI heads",
    "box_head": "RoI heads",
    "source_head": "RoI heads",
}
VIEWS = {
    "view", "permute", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze",
    "detach", "alias", "_unsafe_view", "as_strided", "split", "unbind",
}  # fmt: skip


class Ledger(TorchDispatchMode):
    """Adds up flops, bytes and launches by part of the network."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()
        self.tracker = tracker
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.least_s: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[1] in VIEWS:
            return out
        part = self._part(func, args)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        counter = flop_registry.get(func._overloadpacket)
        flops = counter(*args, **(kwargs or {}), out_val=out) if counter else 0
        peak = VECTOR_FLOPS if part == "depthwise" else MATRIX_FLOPS
        self.flops[part] += flops
        self.bytes[part] += moved
        self.launches[part] += 1
        self.least_s[part] += max(flops / peak, moved / BYTES_S, LAUNCH_S)
        return out

    def _part(self, func, args) -> str:
        if "convolution" in func._schema.name:
            groups = args[-1] if func._schema.name.endswith("convolution") else args[-2]
            if isinstance(groups, int) and groups > 1:
                return "depthwise"
        # Modules whose input needs no gradient never end for the tracker, once the backward pass
        # has begun in them: those of the quality head would claim all that follows.
        open_modules = [name for name in self.tracker.parents if "quality" not in name]
        inside = max(open_modules, key=len).removeprefix("Step.model.")
        return next((PARTS[key] for key in PARTS if inside.startswith(key)), "losses and others")


class Step(torch.nn.Module):
    """Gives every module of the network a name below one root."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, patch: Index, windows: int) -> torch.Tensor:
        return _losses(self.model, patch, windows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-memory", type=float, default=24)
    parser.add_argument("--cases", type=int, default=250, help="of the nominal cohort")
    options = parser.parse_args()
    target = Target(device="cuda", memory_gb=options.gpu_memory)
    plan = PLANNERS["default"](nominal(options.cases), target, "default")
    print(f"patch {plan.patch_size}, batch {plan.batch_size}, widths {plan.network.widths}")
    torch.set_default_dtype(torch.bfloat16)
    tracker = ModuleTracker()
    with torch.device("meta"):
        model = assemble_model(plan.network)
        model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        ledger = Ledger(tracker)
        with tracker, ledger:
            Step(model)(plan.patch_size, plan.batch_size).backward()
    print(f"{'part':26s} {'TFLOP':>7s} {'GB':>7s} {'ops':>6s} {'least ms':>9s}")
    for part, seconds in sorted(ledger.least_s.items(), key=lambda item: -item[1]):
        print(
            f"{part:26s} {ledger.flops[part] / 1e12:7.2f} {ledger.bytes[part] / 1e9:7.1f} "
            f"{ledger.launches[part]:6d} {1e3 * seconds:9.1f}"
        )
    print(
        f"{'all':26s} {sum(ledger.flops.values()) / 1e12:7.2f} "
        f"{sum(ledger.bytes.values()) / 1e9:7.1f} {sum(ledger.launches.values()):6d} "
        f"{1e3 * sum(ledger.least_s.values()):9.1f}"
    )


if __name__ == "__main__":
    main()
