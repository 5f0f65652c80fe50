"""Outlines, hits, FROC and AP against four programs: by their recorded answers, and live.

Agreed: NSD and HD95 with surface-distance to 1e-9 mm; DSC and NSD with MONAI to 1e-5 (it counts in
single precision) and every point of its FROC by centres to 1e-9; FROC and AP with picai_eval to
1e-6; instances, their IoU and DSC with panoptica to 1e-9. HD95 of MONAI is defined otherwise
(centres of border voxels, each counted once, interpolated percentile): over 146 lesions it is
0.2 mm larger on average and never further away than a voxel's diagonal.
"""

import json
import warnings

import numpy as np
import pytest

from bonemet_auto.evaluation.detection import Candidates, average_precision, froc_sensitivity
from bonemet_auto.evaluation.pairing import match_lesions, match_overlaps
from bonemet_auto.evaluation.regions import centre_hits, paired_regions
from bonemet_auto.evaluation.segmentation import count_voxels, dice_from_iou
from bonemet_auto.evaluation.surface import case_outline, lesion_outlines
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import LesionCrop
from tests.oracle.opinions import (
    FIXTURES,
    FROC_RATES,
    PROGRAMS,
    SEEDS,
    SHAPE,
    SPACING_MM,
    overlapping,
    pair_of_maps,
)

ONE = np.ones((1, 1))
ASKED: dict[str, list[dict]] = {}


@pytest.fixture(params=["recorded", pytest.param("live", marks=pytest.mark.oracle)])
def ask(request):
    """The answers of a program, by its name."""

    def answers(program):
        if request.param == "recorded":
            return json.loads((FIXTURES / f"{program}.json").read_text("utf-8"))["answers"]
        pytest.importorskip(program)
        if program not in ASKED:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ASKED[program] = json.loads(json.dumps(PROGRAMS[program]()).replace("NaN", "null"))
        return ASKED[program]

    return answers


def regions_of(seed):
    reference, predicted, _ = pair_of_maps(seed)
    grid = Geometry(SHAPE, SPACING_MM)
    return paired_regions(*(LesionCrop(m, (0, 0, 0), grid) for m in (reference, predicted)))


def candidates(matches, drop=lambda seed, number: False):
    """All predictions as one cohort of one patient; `matches` gives those of a seed."""
    rows, lesions = [], 0
    for seed in SEEDS:
        reference, _, scores = pair_of_maps(seed)
        lesions += len(np.unique(reference)) - 1
        found = matches(seed)
        rows += [(scores[n], found[n].reference > 0) for n in scores if not drop(seed, n)]
    scores, hits = zip(*rows, strict=True)
    return Candidates(
        np.array(scores), np.array(hits), np.zeros(len(rows), np.int64),
        np.array([float(lesions)]), np.array([float(len(SEEDS))]),
    )  # fmt: skip


def by_iou(seed):
    return match_lesions(*pair_of_maps(seed), 0.1)


def by_centre(seed):
    return match_overlaps(centre_hits(regions_of(seed)), pair_of_maps(seed)[2], 1.0)


def test_surfaces_of_surface_distance(ask):
    answers = ask("surface_distance")
    assert len(answers) > 15
    for answer in answers:
        ours = case_outline(regions_of(answer["seed"]), SPACING_MM)
        assert [ours.nsd_1mm, ours.nsd_2mm] == pytest.approx(answer["nsd"], abs=1e-9)
        assert ours.hd95_mm == pytest.approx(answer["hd95_mm"], abs=1e-9)


def test_overlap_and_surfaces_of_monai_empties_included(ask):
    """Without any surface its NSD is not a number, where ours is 1 by rule."""
    for answer in ask("monai")[:-1]:
        reference, predicted, _ = pair_of_maps(answer["seed"])
        ours = case_outline(regions_of(answer["seed"]), SPACING_MM)
        dsc = count_voxels(reference > 0, predicted > 0).dice
        assert dsc == pytest.approx(answer["dsc"], abs=1e-5)
        theirs = [1.0 if value is None else value for value in answer["nsd"]]
        assert [ours.nsd_1mm, ours.nsd_2mm] == pytest.approx(theirs, abs=1e-5)


def test_hd95_of_monai(ask):
    """Another definition: alike lesion by lesion, not equal."""
    differences = []
    for answer in ask("monai")[:-1]:
        reference, predicted, _ = pair_of_maps(answer["seed"])
        pairs = overlapping(reference, predicted)
        ours = lesion_outlines(regions_of(answer["seed"]), pairs, SPACING_MM)
        assert {str(lesion) for lesion in ours} == answer["hd95_mm"].keys()
        differences += [ours[int(n)].hd95_mm - theirs for n, theirs in answer["hd95_mm"].items()]
    assert len(differences) > 100
    assert np.abs(differences).max() < np.linalg.norm(SPACING_MM)
    assert abs(np.mean(differences)) < 0.25
    print(
        len(differences),
        np.mean(differences),
        np.abs(differences).max(),
        np.linalg.norm(SPACING_MM),
    )


def test_froc_of_monai_by_centres(ask):
    """It does not count second hits of a lesion as false positives; they are left out here."""

    def second(seed, number):
        hits = centre_hits(regions_of(seed))
        return number in hits.predicted and by_centre(seed)[number].reference == 0

    cohort = candidates(by_centre, second)
    points = ask("monai")[-1]["froc"]
    assert len(points) > 100
    for rate, _ in points:
        best = max(sensitivity for other, sensitivity in points if other <= rate)
        ours = froc_sensitivity(cohort, (rate * (1 + 1e-12),))(ONE)[0]
        assert ours == pytest.approx(best, abs=1e-9)


def test_froc_and_average_precision_of_picai_eval(ask):
    (answer,) = ask("picai_eval")
    cohort = candidates(by_iou)
    assert cohort.references[0] == answer["lesions"]
    assert average_precision(cohort)(ONE)[0] == pytest.approx(answer["ap"], abs=1e-6)
    ours = [froc_sensitivity(cohort, (rate,))(ONE)[0] for rate in FROC_RATES]
    assert ours == pytest.approx(answer["at_rates"], abs=1e-6)


def test_instances_of_panoptica(ask):
    for answer in ask("panoptica"):
        reference, _, scores = pair_of_maps(answer["seed"])
        iou = np.array([m.iou for m in by_iou(answer["seed"]).values() if m.reference])
        found, lesions = len(iou), len(np.unique(reference)) - 1
        counts = {"tp": found, "fp": len(scores) - found, "fn": lesions - found}
        assert counts == {name: answer[name] for name in counts}
        if found:
            dsc = np.mean([dice_from_iou(each) for each in iou])
            assert (iou.mean(), dsc) == pytest.approx((answer["iou"], answer["dsc"]), abs=1e-9)
