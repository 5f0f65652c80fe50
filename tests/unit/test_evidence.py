"""What lesions are drawn from, as a file; and how their overlaps with an annotation are counted."""

import numpy as np
import pytest

from bonemet_auto.consolidation.gather import Reference, held_out_case
from bonemet_auto.errors import DataError
from bonemet_auto.evaluation.pairing import lesion_volumes, match_lesions
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from bonemet_auto.inference.evidence import Evidence, read_evidence, write_evidence
from bonemet_auto.inference.fuse import Candidate, Outline, drawn
from bonemet_auto.inference.predict import draw_lesions
from bonemet_auto.resample import GridMap
from bonemet_auto.schema import CaseLabels

SHAPE = (10, 14, 18)
GRID = GridMap((1, 0, 2), (8, 12, 16), SHAPE)
SCAN = Volume(np.full((10, 12, 20), 300, np.int16), Geometry((10, 12, 20), (1.0, 1.0, 1.0)))


def candidates(seed, n):
    """Blobs whose probabilities half precision holds exactly; every third without a mask."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        start = rng.integers(0, np.array(SHAPE) - 6)
        size = rng.integers(4, 7, 3)
        dense, mask = rng.integers(0, 17, (2, *size)).astype(np.float32) / 16
        box = np.concatenate([start + 1.0, start + size - 1.0])
        yield Candidate(
            rng.uniform(), rng.uniform(), rng.uniform(), box, tuple(start.tolist()), dense,
            mask if number % 3 else None,
        )  # fmt: skip


@pytest.mark.parametrize("n", [0, 1, 7])
def test_evidence_comes_back_from_its_file(tmp_path, n):
    evidence = Evidence(tuple(candidates(n, n)), GRID, ("no bone in view", "8-bit?"))
    write_evidence(tmp_path / "a.npz", evidence)
    again = read_evidence(tmp_path / "a.npz")
    assert (again.grid, again.warnings) == (evidence.grid, evidence.warnings)
    for one, other in zip(evidence.candidates, again.candidates, strict=True):
        for name in ("score", "p_lung", "mask_quality", "start"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("box", "dense", "mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("harm", ["gone", "cut", "text", "missing part", "too long"])
def test_evidence_that_is_broken_is_refused(tmp_path, harm):
    path = tmp_path / "a.npz"
    write_evidence(path, Evidence(tuple(candidates(0, 3)), GRID, ()))
    with np.load(path) as stored:
        parts = dict(stored)
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif harm == "text":
        path.write_text("evidence")
    elif harm == "missing part":
        np.savez(path, **{name: part for name, part in parts.items() if name != "dense"})
    else:
        np.savez(path, **parts | {"dense": np.append(parts["dense"], np.float16(0))})
    with pytest.raises(DataError, match=r"a\.npz.*Validate the fold again"):
        read_evidence(path)


def test_weights_and_thresholds_of_an_outline():
    dense = np.full((4, 4, 4), 0.6, np.float32)
    mask = np.full((4, 4, 4), 0.2, np.float32)
    box = np.array([0.0, 0, 0, 4, 4, 4])
    both = Candidate(0.9, 0.5, 0.5, box, (0, 0, 0), dense, mask)
    alone = Candidate(0.9, 0.5, 0.5, box, (0, 0, 0), dense, None)
    assert not drawn(both).any() and drawn(alone).all()
    assert drawn(both, Outline(0.25, 0.45)).all() and not drawn(both, Outline(0.25, 0.55)).any()
    assert drawn(both, Outline(0.0, 0.5)).all() and not drawn(both, Outline(1.0, 0.25)).any()


def test_a_higher_threshold_draws_no_more():
    evidence = Evidence(tuple(candidates(5, 4)), GRID, ())
    voxels = []
    for threshold in (0.3, 0.5, 0.7):
        outline = Outline(0.5, threshold)
        voxels.append(sum(drawn(item, outline).sum() for item in evidence.candidates))
        assert len(draw_lesions(evidence, SCAN, outline).lesions) <= 4
    assert voxels[0] > voxels[1] > voxels[2]


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_by_crops_are_those_of_whole_maps(seed):
    result = draw_lesions(Evidence(tuple(candidates(seed, 8)), GRID, ()), SCAN)
    predicted = np.zeros(SCAN.array.shape, np.uint16)
    for number, lesion in enumerate(result.lesions, 1):
        predicted[lesion.region][lesion.mask] = number
    annotated = np.roll(9 - predicted, 1, axis=2) * (np.roll(predicted, 1, axis=2) > 0)
    scores = {number: lesion.score for number, lesion in enumerate(result.lesions, 1)}
    expected = match_lesions(annotated, predicted, scores, 0.1)
    labels = CaseLabels(patient_id="p", instances={number: number % 2 for number in range(1, 9)})
    reference = Reference(annotated, lesion_volumes(annotated), labels)
    found = held_out_case("a", 0, SCAN.geometry, result, reference, 1)
    iou = np.array([match.iou for match in expected.values()])
    np.testing.assert_allclose(found.dice, 2 * iou / (1 + iou))
    sources = [match.reference % 2 if match.reference else -1 for match in expected.values()]
    assert found.is_lung.tolist() == sources
    assert (iou > 0).any()
