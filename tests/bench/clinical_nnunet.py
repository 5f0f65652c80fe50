"""The part of `tests.bench.clinical` that runs in an environment with nnU-Net.

    PYTHON tests/bench/clinical_nnunet.py TASK.json

Builds the plain U-Net whose flops per window are nearest to those asked for, writes it as a trained
model and predicts the scans with nnU-Net's own predictor, one step after the other in this process;
prints one line of JSON. A few windows give the time per forward; all volumes have their full size,
so memory, preprocessing and export are those of a whole prediction.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(folder, "/nonexistent")

import nnunetv2.inference.predict_from_raw_data as theirs  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

STAGES, BLOCKS = 4, 2
CLASSES = 3
WINDOWS = 12
"""Of all, evenly spread, are run: enough for the time of one."""


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    model = Path(task["folder"]) / "nnunet_model"
    features, flops = fitting_width(task)
    write_model(model, task["plan"], features)
    predictor = theirs.nnUNetPredictor(
        tile_step_size=1,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    seconds, forwards = dict.fromkeys(("network", "export"), 0.0), [0]
    predictor.network.register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    shapes: list[tuple[int, ...]] = []
    look, lay = (
        predictor.predict_sliding_window_return_logits,
        predictor._internal_get_sliding_window_slicers,
    )

    def few(shape: tuple[int, ...]) -> list[Any]:
        shapes.append(tuple(shape))
        windows = lay(shape)
        return windows[:: max(1, len(windows) // WINDOWS)]

    predictor._internal_get_sliding_window_slicers = few
    # Where no window looked they divide 0 by 0.
    predictor.predict_sliding_window_return_logits = lambda data: look(data).nan_to_num_()
    timed(seconds, "network", predictor, "predict_logits_from_preprocessed_data")
    timed(seconds, "export", theirs, "export_prediction_from_logits")
    out = Path(task["folder"]) / "nnunet_out"
    out.mkdir(exist_ok=True)
    began_s = time.process_time()
    predictor.predict_from_files_sequential(str(Path(task["folder"]) / "scans"), str(out))
    rest_s = time.process_time() - began_s - sum(seconds.values())
    told = {"flops": flops, "features": features, "forwards": forwards[0], "preprocess_s": rest_s}
    told["planned_forwards"] = planned_forwards(shapes[0], task["plan"])
    print(json.dumps(told | {f"{name}_s": value for name, value in seconds.items()}))


def planned_forwards(shape: tuple[int, ...], plan: dict[str, Any]) -> int:
    """With the step and the mirrors of the plan."""
    step = 1 - plan["inference"]["overlap"]
    starts = theirs.compute_steps_for_sliding_window(shape, plan["patch_size"], step)
    windows = len(starts[0]) * len(starts[1]) * len(starts[2])
    return windows * 2 ** len(plan["inference"]["mirror_axes"])


def timed(seconds: dict[str, float], name: str, owner: Any, attribute: str) -> None:
    """Add the CPU time of every call of a function to `seconds`."""
    function = getattr(owner, attribute)

    def call(*given: Any, **named: Any) -> Any:
        began_s = time.process_time()
        try:
            return function(*given, **named)
        finally:
            seconds[name] += time.process_time() - began_s

    setattr(owner, attribute, call)


def fitting_width(task: dict[str, Any]) -> tuple[list[int], int]:
    """Channels of each stage, and flops of a window, nearest to those asked for."""
    found = []
    for first in range(4, 65):
        features = [first * 2**stage for stage in range(STAGES)]
        network = build(architecture(features))
        window = torch.zeros(1, 1, *task["plan"]["patch_size"])
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(window)
        flops = counter.get_total_flops()
        found.append((abs(flops / task["flops"] - 1), flops, features))
        if flops > task["flops"]:
            break
    away, flops, features = min(found)
    if away > task["tolerance"]:
        raise SystemExit(f"no width fits: {features} is {away:.0%} off")
    return features, flops


def architecture(features: list[int]) -> dict[str, Any]:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": STAGES,
            "features_per_stage": features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * STAGES,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (STAGES - 1),
            "n_conv_per_stage": [BLOCKS] * STAGES,
            "n_conv_per_stage_decoder": [BLOCKS] * (STAGES - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build(described: dict[str, Any]) -> torch.nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    names = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    network = get_network_from_plans(*(described[name] for name in names), 1, CLASSES, False)
    return network.eval()


def write_model(folder: Path, plan: dict[str, Any], features: list[int]) -> None:
    """A model folder as nnU-Net's training leaves it, with weights as they come."""
    described = architecture(features)
    resampling = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": plan["patch_size"],
        "median_image_size_in_voxels": plan["patch_size"],
        "spacing": plan["spacing_mm"],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0},
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
        "architecture": described,
    }
    low, high = plan["window_hu"]
    intensities = {"mean": plan["mean_hu"], "std": plan["sd_hu"], "median": plan["mean_hu"]}
    intensities |= {"percentile_00_5": low, "percentile_99_5": high, "min": low, "max": high}
    plans = {
        "dataset_name": "Dataset001_Clinical",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": plan["spacing_mm"],
        "original_median_shape_after_transp": plan["patch_size"],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"3d_fullres": configuration},
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "other": 1, "lung_metastasis": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": tuple(plan["inference"]["mirror_axes"]),
        "network_weights": build(described).state_dict(),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


if __name__ == "__main__":
    main()
