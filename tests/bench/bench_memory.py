"""Predicted against measured peak memory of training, in a fresh process per plan.

    python -m tests.bench.bench_memory [--gpu-memory 8 24 40]

Without a GPU: six plans of growing size are trained for two steps each (all losses, as many lesions
as RoI heads take); measured is the peak resident memory less that of the process before the network
was built. On a GPU: `torch.cuda.max_memory_allocated`, for plans made for the given memory.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace

from bonemet_auto.model.footprint import HEADROOM
from bonemet_auto.plan_schema import Plan, Target
from planners import measured_plan
from planners.default import make_plan
from planners.fast import FAST
from planners.memory import CONTEXT_BYTES, Blueprint, training_bytes
from planners.preset import FAMILIES
from tests.nominal import nominal

LESIONS_PER_WINDOW = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-memory", type=float, nargs="+", default=[])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Plan.model_validate_json(options.one))))
        return
    plans = gpu_plans(options.gpu_memory) if options.gpu_memory else cpu_plans()
    print("| planner | patch | batch | formula, GB | predicted, GB | measured, GB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for plan in plans:
        report(plan)


def cpu_plans() -> list[Plan]:
    """Six plans that need about 1 to 8 GB on this processor."""
    from planners import detect_target

    fingerprint = nominal(70, (1.0, 1.0, 1.0))
    target = detect_target(None).model_copy(update={"device": "cpu"})
    wide = FAMILIES[0][2]
    wanted = [
        (replace(FAST, edges=(64,)), 1),
        (replace(FAST, edges=(80,)), 2),
        (replace(FAST, edges=(112,), coarsest_lesion_voxels=None), 4),
        (replace(wide, edges=(96,), batch_sizes=(2, 2)), 3),
        (replace(wide, edges=(128,), batch_sizes=(2, 2)), 6),
        (replace(wide, edges=(112,), batch_sizes=(4, 4)), 8),
    ]
    return [
        measured_plan(
            make_plan(
                preset, fingerprint, target.model_copy(update={"memory_gb": 64}), "p", None, None
            )
        )
        for preset, _ in wanted
    ]


def gpu_plans(sizes: list[float]) -> list[Plan]:
    from planners import plan_default

    fingerprint = nominal(70, (1.0, 1.0, 1.0))
    return [
        measured_plan(plan_default(fingerprint, Target(device="cuda", memory_gb=gb), "p"))
        for gb in sizes
    ]


def report(plan: Plan) -> None:
    command = [sys.executable, "-m", "tests.bench.bench_memory", "--one", plan.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])["bytes"]
    predicted = allocated(plan.memory_bytes, plan.target)
    formula = training_bytes(
        Blueprint.of(plan.network), plan.patch_size, plan.batch_size, plan.target
    )
    patch = " x ".join(map(str, plan.patch_size))
    searched = allocated(formula, plan.target)
    print(
        f"| {plan.planner} | {patch} | {plan.batch_size} | {searched / 1e9:.2f} "
        f"| {predicted / 1e9:.2f} | {measured / 1e9:.2f} | {predicted / measured:.2f} |",
        flush=True,
    )


def allocated(predicted: int, target: Target) -> float:
    """What a prediction says of the figure that is measured: on a GPU the tensors alone."""
    if target.device == "cpu":
        return predicted
    return (predicted - CONTEXT_BYTES["cuda"]) / HEADROOM["cuda"]


def measure(plan: Plan) -> dict[str, int]:
    """Two steps of training on noise; peak bytes beyond what the process held before."""
    from bonemet_auto.processor import tune_processor

    tune_processor()
    import torch

    from bonemet_auto.data.loader import Batch
    from bonemet_auto.model.mask_rcnn import build_model
    from bonemet_auto.model.roi_sampling import Targets
    from bonemet_auto.training.trainer import Trainer

    device = torch.device(plan.target.device)
    torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)
    before = resident_bytes()
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(plan.batch_size):
        instances = torch.zeros(plan.patch_size, dtype=torch.int16)
        boxes = []
        for number in range(LESIONS_PER_WINDOW):
            start = [int(torch.randint(n - 8, (1,), generator=generator)) for n in plan.patch_size]
            stop = [s + 7 for s in start]
            instances[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = number + 1
            boxes.append([*start, *stop])
        targets.append(
            Targets(torch.tensor(boxes).float(), instances, torch.ones(len(boxes)).long())
        )
    images = torch.randn(plan.batch_size, 1, *plan.patch_size, generator=generator)
    batch = Batch(images, targets, ["noise"] * plan.batch_size)
    trainer = Trainer(build_model(plan.network), plan.training, plan.batch_size, 10, 0, device)
    for number in (8, 9):
        trainer.step(number, batch)
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"bytes": peak - before}


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
