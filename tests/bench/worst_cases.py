"""What a model finds by size and by matter, and pictures of the ten cases it does worst on.

    python -m tests.bench.worst_cases PRED ROOT/raw/Dataset001_Med --picture worst.png

PRED holds predictions of the test cases of a phantom cohort made by `bonemet_phantom DATASET
--cases 40 --test-cases 16 --size medium --seed 0` (other numbers by flag): what a lesion is made of
is not on file, so the cases are made again. Found: mask IoU of .1 at the operating point.
"""

import argparse
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from PIL import Image  # noqa: E402

from bonemet_auto.evaluation.evaluate import evaluate_folders  # noqa: E402
from bonemet_auto.images import find_images, read_hu, read_instances  # noqa: E402
from bonemet_auto.phantom.cohort import CaseRecipe, draw_recipes, make_case  # noqa: E402
from bonemet_auto.report.pictures import View, centre_of, three_views  # noqa: E402

SIZES_MM = {"5-10 mm": (5, 10), "10-20 mm": (10, 20), "> 20 mm": (20, 1000)}
WORST = 10
COLOURS = ("lime", "orange")
SHADES = ((1.0, 0.0), (0.75, 0.2), (0.5, 0.2), (0.5, 0.6))
"""How much of an outline, and the grey beside it, smoothing leaves in a pixel."""


class Worst(NamedTuple):
    """A case, its row of lesions that tells most, and its DSC."""

    case: str
    lesion: pd.Series
    dsc: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pred", type=Path)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--test-cases", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="medium", choices=["small", "medium", "clinical"])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    recipes = draw_recipes(options.cases, options.test_cases, options.seed, options.size)
    found = evaluate_folders(options.pred, options.raw / "labelsTs")
    lesions = with_matter(found.lesions, recipes)
    print_sensitivity(lesions[lesions["reference_id"] > 0])
    if options.picture:
        worst = worst_of(found.cases, lesions)
        draw(worst, options.pred, options.raw, options.picture)


def with_matter(lesions: pd.DataFrame, recipes: list[CaseRecipe]) -> pd.DataFrame:
    """The table of lesions with what each annotated one is made of."""
    matter = {
        (recipe.name, lesion.instance): lesion.look.matter
        for recipe in recipes
        if recipe.split == "Ts"
        for lesion in make_case(recipe).lesions
    }
    keys = zip(lesions["case"], lesions["reference_id"], strict=True)
    return lesions.assign(matter=[matter.get(key) for key in keys])


def print_sensitivity(annotated: pd.DataFrame) -> None:
    """Lesions found of all, by size and by what they are made of."""
    matters = sorted(annotated["matter"].unique())
    print("| | " + " | ".join([*matters, "all"]) + " |\n| --- |" + " --- |" * (len(matters) + 1))
    for name, (low, high) in [*SIZES_MM.items(), ("all", (0, 1000))]:
        of_size = annotated[annotated["diameter_mm"].between(low, high, inclusive="left")]
        groups = [of_size[of_size["matter"] == matter] for matter in matters] + [of_size]
        cells = [f"{(g['outcome'] == 'found').sum()} of {len(g)}" for g in groups]
        print(f"| {name} | " + " | ".join(cells) + " |")


def worst_of(cases: pd.DataFrame, lesions: pd.DataFrame) -> list[Worst]:
    """The cases of lowest DSC, each with its largest miss, surest false positive or worst mask."""
    worst = []
    for row in cases.sort_values("dsc").head(WORST).itertuples():
        mine = lesions[lesions["case"] == row.case]
        if mine.empty:
            continue
        missed = mine[mine["outcome"] == "missed"].sort_values("volume_mm3", ascending=False)
        false = mine[mine["reference_id"] == 0].sort_values("score", ascending=False)
        poor = mine[mine["outcome"] == "found"].sort_values("dsc")
        told = next(table for table in (missed, false, poor) if len(table)).iloc[0]
        worst.append(Worst(row.case, told, row.dsc))
    return worst


def draw(worst: list[Worst], pred: Path, raw: Path, picture: Path) -> None:
    """One row per case, three planes; annotated outlines green, predicted ones orange."""
    images = find_images(raw / "imagesTs")
    figure, axes = plt.subplots(WORST // 2, 6, figsize=(15, 2.75 * WORST // 2))
    for axis in axes.flat:
        axis.axis("off")
    for number, item in enumerate(worst):
        annotated, predicted = (
            read_instances(folder / f"{item.case}.nii.gz").array
            for folder in (raw / "labelsTs", pred)
        )
        scan = read_hu(images[item.case])
        shown, number_of = (annotated, "reference_id")
        if not item.lesion["reference_id"]:
            shown, number_of = (predicted, "predicted_id")
        centre = centre_of(shown, int(item.lesion[number_of]))
        views = three_views(scan.array, scan.geometry, centre, annotated, predicted, [])
        row, column = number // 2, 3 * (number % 2)
        for view, axis in zip(views, axes[row, column : column + 3], strict=True):
            show(view, axis)
        axes[row, column].set_title(caption(item), fontsize=8, loc="left")
    figure.tight_layout(pad=0.4)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=64)
    few = Image.open(drawn).convert("RGB").quantize(palette=palette(), dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


def palette() -> Image.Image:
    """56 greys, and four shades of each outline, which rare as they are would become grey."""
    lines = [np.array(to_rgb(colour)) for colour in COLOURS]
    shades = [grey + share * (line - grey) for line in lines for share, grey in SHADES]
    greys = np.linspace(0, 1, 56)[:, None].repeat(3, axis=1)
    image = Image.new("P", (1, 1))
    image.putpalette(np.rint(255 * np.vstack([greys, *shades])).astype(int).ravel().tolist())
    return image


def show(view: View, axis: Axes) -> None:
    axis.imshow(view.grey, "gray", extent=(0, view.width_mm, view.height_mm, 0))
    for lines, colour in zip((view.reference, view.predicted), COLOURS, strict=True):
        for line in lines:
            axis.plot(*line.T, color=colour, linewidth=1)


def caption(item: Worst) -> str:
    lesion = item.lesion
    where = f"{item.case}, DSC {item.dsc:.2f}: "
    if not lesion["reference_id"]:
        return where + f"false positive, score {lesion['score']:.2f}"
    what = f"{lesion['matter']}, {lesion['diameter_mm']:.0f} mm"
    if lesion["outcome"] == "missed":
        return where + f"missed, {what}"
    return where + f"outline of {what}, DSC {lesion['dsc']:.2f}"


if __name__ == "__main__":
    main()
