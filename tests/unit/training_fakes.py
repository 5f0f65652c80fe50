"""Tiny networks, windows with bright blobs at known places, and stored cases for training tests."""

from pathlib import Path

import numpy as np
import torch

from bonemet_auto.checkpoint import load_to_resume, progress_of
from bonemet_auto.data.loader import Batch, batches
from bonemet_auto.geometry import Geometry
from bonemet_auto.model.roi_sampling import Targets
from bonemet_auto.plan_schema import NetworkPlan, Plan
from bonemet_auto.schema import GeometryRecord, StoredCase, StoredLesion
from bonemet_auto.store import write_case
from bonemet_auto.training.log import TrainingLog
from bonemet_auto.training.loop import epochs_done, go_on, train
from bonemet_auto.training.trainer import Trainer
from tests.unit.inference_fakes import make_plan

CPU = torch.device("cpu")
AIR = -1.1
"""What -1024 HU becomes in a plan that clips at -200 HU and has sd 1000 and mean 900."""


def train_here(model, plan, dataset, folder, progress, resume=False):
    """Train in this process on the CPU, from `progress` or the last checkpoint in `folder`."""
    if resume:
        progress = progress_of(load_to_resume(folder, CPU))
    total, size = progress.total_steps, plan.batch_size
    trainer = Trainer(model, plan.training, size, total, progress.seed, CPU)
    if resume:
        go_on(trainer, folder)
    loader = batches(dataset, progress.step, total, size, workers=0)
    return train(trainer, loader, folder, progress, TrainingLog(folder, epochs_done(progress)))


def make_network(**changes) -> NetworkPlan:
    """Two stages, anisotropic stem."""
    shape = {
        "widths": (8, 12),
        "depths": (1, 1),
        "strides": ((1, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3)),
        "skip_width": 4,
        "neck_width": 8,
        "rpn_stages": (0, 1),
        "anchor_sizes": (((3, 5, 5), (2, 3, 3)), ((5, 9, 9), (8, 8, 8))),
        "drop_path": 0.0,
    }
    return NetworkPlan.model_validate(shape | changes)


def training_plan(patch=(8, 16, 16), **training) -> Plan:
    """A plan of the tiny network."""
    plan = make_plan(patch)
    settings = plan.training.model_copy(
        update={"iterations": 12, "epochs": 3, "learning_rate": 1e-3, **training}
    )
    return plan.model_copy(update={"network": make_network(drop_path=0.3), "training": settings})


def box_targets(shape, boxes, is_lung=None) -> Targets:
    """Targets of a window whose lesions fill their (integer) boxes."""
    instances = torch.zeros(shape, dtype=torch.int16)
    for number, (z0, y0, x0, z1, y1, x1) in enumerate(boxes, 1):
        instances[z0:z1, y0:y1, x0:x1] = number
    sources = [0] * len(boxes) if is_lung is None else is_lung
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6),
        instances,
        torch.tensor(sources, dtype=torch.long),
    )


def box_batch(shape, windows, seed=0) -> Batch:
    """Noise with a bright cuboid for every lesion; `windows` holds (boxes, sources) per image."""
    rng = np.random.default_rng(seed)
    targets = [box_targets(shape, boxes, sources) for boxes, sources in windows]
    images = torch.from_numpy(rng.normal(0, 0.3, (len(windows), 1, *shape)).astype(np.float32))
    for image, target in zip(images, targets, strict=True):
        image[0][target.instances > 0] += 2
    return Batch(images, targets, [f"case_{i}" for i in range(len(windows))])


def write_stored_case(
    folder: Path,
    case: str,
    shape=(20, 24, 24),
    lesions=(((4, 5, 6, 7, 9, 10), True),),
    bone=((10, 12, 12),),
    seed=0,
) -> StoredCase:
    """Store noise with a bright cuboid per lesion, given as (box, is_lung); ids from 1 up."""
    hu = np.random.default_rng(seed).integers(-100, 200, shape).astype(np.int16)
    instances = np.zeros(shape, np.uint16)
    for number, (box, _) in enumerate(lesions, 1):
        where = tuple(slice(box[axis], box[axis + 3]) for axis in range(3))
        instances[where] = number
    hu[instances > 0] += 900
    meta = stored_case(case, shape, lesions, bone)
    write_case(folder, hu, instances, meta)
    return meta


def stored_case(case, shape, lesions=(), bone=()) -> StoredCase:
    """The description alone."""
    return StoredCase(
        case=case,
        patient_id=case,
        input_hash="0",
        original=GeometryRecord.of(Geometry(tuple(shape), (1.0, 1.0, 1.0))),
        crop_start=(0, 0, 0),
        crop_shape=tuple(shape),
        shape=tuple(shape),
        spacing_mm=(1.0, 1.0, 1.0),
        lesions=tuple(
            StoredLesion(
                instance=number,
                is_lung=is_lung,
                box_voxel_zyx=box,
                volume_voxel=int(np.prod(np.subtract(box[3:], box[:3]))),
            )
            for number, (box, is_lung) in enumerate(lesions, 1)
        ),
        patient_label=None,
        bone_voxels=tuple(bone),
    )
