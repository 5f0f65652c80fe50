"""How hard are the phantoms? A plain residual 3D U-Net of about 1.1 M parameters on the same data.

Same windows, loss, optimiser, schedule and whole-scan prediction as the product; only the network
is another one, and lesions are the connected components of its probability.

    python tests/bench/dense_baseline.py ROOT DATASET --time-budget 8m --out FOLDER
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from bonemet_auto.commands.common import parse_duration
from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from torch import Tensor, nn  # noqa: E402

from bonemet_auto.checkpoint import Progress  # noqa: E402
from bonemet_auto.commands.fold_validation import validate_fold  # noqa: E402
from bonemet_auto.data.loader import PatchDataset, batches  # noqa: E402
from bonemet_auto.evaluation.evaluate import evaluate_folders  # noqa: E402
from bonemet_auto.evaluation.table import format_table  # noqa: E402
from bonemet_auto.files import find_dataset, preprocessed_folder  # noqa: E402
from bonemet_auto.folds import fold_cases  # noqa: E402
from bonemet_auto.images import find_images  # noqa: E402
from bonemet_auto.inference.export import write_case  # noqa: E402
from bonemet_auto.inference.predict import Prediction, predict_cases  # noqa: E402
from bonemet_auto.model.losses import dense_loss  # noqa: E402
from bonemet_auto.model.mask_rcnn import Detections, MaskRCNN, Outlines  # noqa: E402
from bonemet_auto.model.roi_sampling import Targets  # noqa: E402
from bonemet_auto.plan_schema import Plan  # noqa: E402
from bonemet_auto.schema import Fingerprint, Splits, read_json  # noqa: E402
from bonemet_auto.training.log import TrainingLog  # noqa: E402
from bonemet_auto.training.loop import train  # noqa: E402
from bonemet_auto.training.trainer import Trainer  # noqa: E402

WIDTHS = (16, 32, 64, 96)


class Residual(nn.Module):
    """Two 3^3 convolutions with instance norm and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels_in, channels_out, 3, stride, 1)
        self.second = nn.Conv3d(channels_out, channels_out, 3, 1, 1)
        self.norms = nn.ModuleList(nn.InstanceNorm3d(channels_out, affine=True) for _ in range(2))
        self.shortcut = nn.Conv3d(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norms[0](self.first(x)), 0.01)
        return F.leaky_relu(self.norms[1](self.second(h)) + self.shortcut(x), 0.01)


class PlainUnet(nn.Module):
    """Encoder, decoder, one logit per voxel; the product's three methods, without boxes."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.encoder = nn.ModuleList(
            Residual(c_in, c_out, 1 if i == 0 else 2)
            for i, (c_in, c_out) in enumerate(zip(inputs, widths, strict=True))
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(deep, fine, 2, 2)
            for fine, deep in zip(widths[:-1], widths[1:], strict=True)
        )
        self.decoder = nn.ModuleList(Residual(2 * width, width) for width in widths[:-1])
        self.logit = nn.Conv3d(widths[0], 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        maps = []
        x = images
        for block in self.encoder:
            x = block(x)
            maps.append(x)
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](torch.cat([self.up[i](x), maps[i]], dim=1))
        return self.logit(x)[:, 0].float()

    def forward(
        self,
        images: Tensor,
        targets: list[Targets],
        _generator: torch.Generator,
        dense_only: bool = True,
    ) -> dict[str, Tensor]:
        lesion = torch.stack([target.instances for target in targets]) > 0
        return {"dense_entropy": dense_loss(self.logits(images), lesion.float())}

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        nothing = [images.new_zeros(0, 6) for _ in images]
        scores = [images.new_zeros(0) for _ in images]
        return Detections(self.logits(images).sigmoid(), nothing, scores)

    @torch.no_grad()
    def outline(self, _images: Tensor, boxes: list[Tensor]) -> list[Outlines]:
        return [
            Outlines(
                torch.ones(len(b), 2, 2, 2),
                torch.full((len(b),), 0.5),
                torch.ones(len(b)),
                torch.ones(len(b)),
            )
            for b in boxes
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-budget", type=parse_duration, default=480.0)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("-p", "--plan-name", default="default")
    options = parser.parse_args()
    name = find_dataset(options.root, options.dataset)
    folder = preprocessed_folder(options.root, name)
    plan = read_json(folder / options.plan_name / "plan.json", Plan)
    fingerprint = read_json(folder / "fingerprint.json", Fingerprint)
    training, held_out = fold_cases(read_json(folder / "splits.json", Splits), fingerprint, 0)
    dataset = PatchDataset(folder / options.plan_name / "cases", training, plan, seed=0)
    device, raw = torch.device("cpu"), options.root / "raw" / name

    torch.manual_seed(0)
    steps = options.iterations or int(options.time_budget / step_seconds(plan, dataset, device))
    model = PlainUnet()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {steps} steps")
    trainer = Trainer(model, plan.training, plan.batch_size, steps, 0, device)
    loader, fold = batches(dataset, 0, steps, plan.batch_size, 1), options.out / "fold_0"
    # Prediction calls no others than the three methods that it shares with the product's.
    average = cast(
        "MaskRCNN", train(trainer, loader, fold, Progress(0, steps, 20, 0), TrainingLog(fold, 0))
    )
    point = validate_fold(average, plan, raw, held_out, fold, device)
    for found in predict_cases(find_images(raw / "imagesTs"), [average], plan, device):
        if isinstance(found, Prediction):
            write_case(options.out / "pred", found.case, found.geometry, found.result, point)
    print(format_table(evaluate_folders(options.out / "pred", raw / "labelsTs")))


def step_seconds(plan: Plan, dataset: PatchDataset, device: torch.device) -> float:
    """Wall-clock seconds of a step, on a network that is thrown away."""
    trainer = Trainer(PlainUnet(), plan.training, plan.batch_size, 100, 0, device)
    started = time.perf_counter()
    for number, batch in enumerate(batches(dataset, 0, 16, plan.batch_size, 1)):
        if number == 4:
            started = time.perf_counter()
        trainer.step(number, batch)
    return (time.perf_counter() - started) / 12


if __name__ == "__main__":
    main()
