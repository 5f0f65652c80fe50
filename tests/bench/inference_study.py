"""What does each part of prediction add? One trained fold, one change at a time, no training.

    python -m tests.bench.inference_study ROOT FOLD_FOLDER

Predicts the 40 test phantoms that `tests.bench.study` makes: nothing that the fold was trained on
or its threshold chosen with. The windows of a scan are run once for all changes that leave them
alone. Prints the table of docs/benchmarks.md.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402

from bonemet_auto.evaluation.evaluate import evaluate_folders  # noqa: E402
from bonemet_auto.images import Volume, read_hu  # noqa: E402
from bonemet_auto.inference import find, fuse, merge, predict  # noqa: E402
from bonemet_auto.inference.export import write_case  # noqa: E402
from bonemet_auto.inference.load import Ensemble, load_ensemble  # noqa: E402
from tests.bench.cohorts import PHANTOMS, join_references, join_scans  # noqa: E402

CPU = torch.device("cpu")
SHOWN = {
    "sens. .25 FP": ("detection", "sensitivity_at_0.25_fp"),
    "sens. 1 FP": ("detection", "sensitivity_at_1_fp"),
    "sens. 4 FP": ("detection", "sensitivity_at_4_fp"),
    "CPM": ("detection", "cpm"),
    "AP .1": ("detection", "ap_iou_0.1"),
    "AP .5": ("detection", "ap_iou_0.5"),
    "DSC of found": ("lesion", "dsc_matched"),
    "source AUC": ("lesion", "source_auc"),
}

Change = dict[str, Any]
"""Values of a plan's `inference` fields, of attributes of modules by `module.name`, or outline."""


def looks(box: float, centred: float, dense: float) -> Change:
    """A score that weighs the three looks at a lesion in another way."""
    return {"fuse.fused_score": lambda b, c, d: box * b + centred * c + dense * d}


def clusters(iou: float) -> Change:
    """Boxes that overlap by another share make one lesion."""
    return {"predict.weighted_clusters": partial(merge.weighted_clusters, iou_threshold=iou)}


CHANGES: dict[str, Change] = {
    "today": {},
    "score of the box alone": looks(1, 0, 0),
    "score of the centred look alone": looks(0, 1, 0),
    "dense score alone": looks(0, 0, 1),
    "box and dense": looks(0.5, 0, 0.5),
    "centred and dense": looks(0, 0.5, 0.5),
    "dense counts twice": looks(0.25, 0.25, 0.5),
    "outlines from dense alone": {"outline": fuse.Outline(mask_weight=0.0)},
    "outlines from masks alone": {"outline": fuse.Outline(mask_weight=1.0)},
    "outlines of doubtful lesions not raised": {"fuse.CERTAIN": 0.0},
    "no dense components": {"fuse.MAX_LEFTOVERS": 0},
    "dense components from 5 mm3": {"predict.MIN_LEFTOVER_MM3": 5.0},
    "dense components from 100 mm3": {"predict.MIN_LEFTOVER_MM3": 100.0},
    "clusters of IoU .15": clusters(0.15),
    "clusters of IoU .5": clusters(0.5),
    "no mirror": {"mirror_axes": ()},
    "four mirrors": {"mirror_axes": (1, 2)},
    "windows overlap by a quarter": {"overlap": 0.25},
    "the same with four mirrors": {"overlap": 0.25, "mirror_axes": (1, 2)},
}
MODULES = {"fuse": fuse, "predict": predict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("fold", type=Path)
    parser.add_argument("--only", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    options = parser.parse_args()
    ensemble = load_ensemble([options.fold], CPU)
    scans = join_scans(options.root, PHANTOMS)
    print("| | " + " | ".join([*SHOWN, "s"]) + " |\n" + "| --- " * (len(SHOWN) + 2) + "|")
    run_windows: Callable[..., Any] = remembered(find.run_windows)
    with tempfile.TemporaryDirectory() as place:
        reference = join_references(options.root, PHANTOMS, Path(place) / "reference")
        for name in options.only:
            out = Path(place) / "out"
            began = time.perf_counter()
            with patch.object(predict, "run_windows", run_windows):
                predict_all(scans, ensemble, CHANGES[name], out)
            seconds = time.perf_counter() - began
            figures = evaluate_folders(out, reference).figures
            values = [figures[group][figure].value for group, figure in SHOWN.values()]
            cells = ["-" if value is None else f"{value:.3f}" for value in values]
            print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)
            shutil.rmtree(out)


def predict_all(scans: dict[str, Path], ensemble: Ensemble, change: Change, out: Path) -> None:
    outline = change.get("outline", fuse.USUAL_OUTLINE)
    patched = {name for name in change if "." in name}
    fields = {name: change[name] for name in change.keys() - patched - {"outline"}}
    inference = ensemble.plan.inference.model_copy(update=fields)
    plan = ensemble.plan.model_copy(update={"inference": inference})
    with ExitStack() as stack:
        for name in patched:
            module, attribute = name.split(".")
            stack.enter_context(patch.object(MODULES[module], attribute, change[name]))
        for case, path in scans.items():
            volume = read(path)
            result = predict.predict_volume(volume, ensemble.models, plan, CPU, outline)
            write_case(out, case, volume.geometry, result, ensemble.operating_point)


@cache
def read(path: Path) -> Volume:
    return read_hu(path)


def remembered(run_windows: Callable[..., Any]) -> Callable[..., Any]:
    """The first stage, run once for each scan, tiling and set of mirrors."""
    seen: dict[tuple[Any, ...], Any] = {}

    def run(hu: Any, tiling: Any, models: Any, to_input: Any, mirrors: Any, *given: Any) -> Any:
        key = (hu.shape, hu.tobytes()[:: hu.nbytes // 1000], tuple(tiling.windows), tuple(mirrors))
        if key not in seen:
            seen[key] = run_windows(hu, tiling, models, to_input, mirrors, *given)
        dense, raw = seen[key]
        return dense.copy(), raw

    return run


if __name__ == "__main__":
    main()
