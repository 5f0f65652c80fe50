"""Masks on the planned grid: the second stage's outline and the dense probability, fused."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.geometry import Index
from bonemet_auto.inference.describe import BoxArray, Description
from bonemet_auto.inference.find import FloatArray
from bonemet_auto.result_schema import OperatingPoint

FOUND = 0.5
"""Dense probability above which a voxel belongs to a component."""

CERTAIN = 0.88
"""Least dense probability of a box's surest voxel, once a lesion there is taken for given."""

MAX_LEFTOVERS = 100
"""So many dense components without a box become candidates at most."""
_MARGIN_SHARE = 0.1
_LEAST_MARGIN_VOXEL = 2.0
_LEAST_PROBABILITY = 1e-3

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Outline:
    """How a mask is drawn from what the two stages say of each voxel.

    Attributes:
        mask_weight: share of the second stage in the fused probability; the dense branch has the
            rest.
        threshold: fused probability above which a voxel is the lesion's.
    """

    mask_weight: float = 0.5
    threshold: float = 0.5


USUAL_OUTLINE = Outline()


def outline_of(point: OperatingPoint) -> Outline:
    """The way to draw masks that comes with a model's thresholds."""
    return Outline(point.mask_weight, point.mask_threshold)


@dataclass(frozen=True)
class Candidate:
    """A lesion on the planned grid, before its outline is drawn.

    Its score and which dense components it accounts for are found with the usual outline: another
    one changes masks, never what is found.

    Attributes:
        score: of detection, see `fused_score`.
        p_lung: probability of a lung-cancer metastasis.
        mask_quality: estimated Dice of the mask, if there is a lesion.
        box: (6,) voxels of the planned grid.
        start: first voxel of the crops on the planned grid.
        dense: (z, y, x) crop around the box, dense probability as `given_a_lesion`.
        mask: the same crop, the second stage's probability, which says nothing outside the box;
            None where there is none.
    """

    score: float
    p_lung: float
    mask_quality: float
    box: BoxArray
    start: Index
    dense: FloatArray
    mask: FloatArray | None

    @property
    def region(self) -> tuple[slice, ...]:
        """Where the crops lie on the planned grid."""
        ends = zip(self.start, self.dense.shape, strict=True)
        return tuple(slice(begin, begin + size) for begin, size in ends)


@dataclass(frozen=True)
class Leftover:
    """A dense component that no lesion touches.

    Attributes:
        number: of the component.
        box: (6,) voxels.
        dense_score: its mean dense probability.
    """

    number: int
    box: BoxArray
    dense_score: float


def label_components(probability: FloatArray, threshold: float = FOUND) -> IntArray:
    """Number the face-connected components above a threshold, from 1; 0 elsewhere."""
    labels, _ = ndimage.label(probability > threshold)
    return np.asarray(labels, dtype=np.int32)


def fuse(dense: FloatArray, box: BoxArray, description: Description, box_score: float) -> Candidate:
    """Gather what is known of one lesion, in its box and a rim around it.

    Args:
        dense: (Z, Y, X) lesion probability.
        box: (6,) voxels, inside the volume.
        description: what the second stage says of the lesion.
        box_score: the detector's score of the box.
    """
    margin = np.maximum(_LEAST_MARGIN_VOXEL, _MARGIN_SHARE * (box[3:] - box[:3]))
    low = np.maximum(np.floor(box[:3] - margin), 0).astype(int)
    high = np.minimum(np.ceil(box[3:] + margin), dense.shape).astype(int)
    seen = dense[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    surest = float(seen[_inside(box, low, high)].max())
    mask = None if description.mask is None else paste_mask(description.mask, box, low, high)
    candidate = Candidate(
        score=0.0,
        p_lung=description.p_lung,
        mask_quality=description.mask_quality,
        box=box,
        start=(int(low[0]), int(low[1]), int(low[2])),
        dense=given_a_lesion(seen, surest),
        mask=mask,
    )
    evidence = seen[drawn(candidate)]
    dense_score = float(evidence.mean()) if evidence.size else 0.0
    return replace(candidate, score=fused_score(box_score, description.score, dense_score))


def drawn(candidate: Candidate, outline: Outline = USUAL_OUTLINE) -> BoolArray:
    """Voxels of a candidate's crop that its mask holds on the planned grid."""
    return fused_probability(candidate, outline) > outline.threshold


def fused_probability(candidate: Candidate, outline: Outline) -> FloatArray:
    """Fused lesion probability in a candidate's crop.

    Inside the box the two sources are averaged. In the rim, where the second stage says nothing,
    the dense probability alone counts, but only what hangs together with the inside: a lesion may
    outgrow a tight box, yet must not pick up its neighbours.
    """
    low = np.asarray(candidate.start)
    inside = _inside(candidate.box, low, low + candidate.dense.shape)
    probability = candidate.dense.copy()
    if candidate.mask is not None:
        probability[inside] *= 1 - outline.mask_weight
        probability[inside] += outline.mask_weight * candidate.mask[inside]
    labels = label_components(probability, outline.threshold)
    attached = np.unique(labels[inside])
    probability[(labels > 0) & ~np.isin(labels, attached)] = 0
    return probability


def given_a_lesion(probability: FloatArray, surest: float) -> FloatArray:
    """Dense probability, had the branch been as sure of the lesion as of its shape.

    The dense branch answers two questions at once: is there a lesion, and which voxels are its
    own. An outline asks the second alone, and the score has the first, so the odds of all voxels
    are raised by the factor that lifts the surest one to `CERTAIN`. A lesion that the branch doubts
    keeps its outline instead of losing it to the mask threshold.

    Args:
        probability: (z, y, x) in and around a box.
        surest: its highest value inside the box.
    """
    surest = max(surest, _LEAST_PROBABILITY)
    if surest >= CERTAIN:
        return probability.copy()
    raised = probability * (CERTAIN / (1 - CERTAIN) * (1 - surest) / surest)
    return np.asarray(raised / (1 - probability + raised), dtype=np.float32)


def fused_score(box_score: float, centred_score: float, dense_score: float) -> float:
    """Detection score of a lesion: the mean of what three looks at it say.

    They err differently: together they find more at the same number of false positives than any of
    them. A lesion that only one of them sees gets no more than a third.

    Args:
        box_score: of the detector, over all windows.
        centred_score: of the second stage, in a window centred on the lesion.
        dense_score: mean dense probability over the lesion's mask.
    """
    return (box_score + centred_score + dense_score) / 3


def paste_mask(
    mask: FloatArray, box: BoxArray, low: npt.NDArray[np.int_], high: npt.NDArray[np.int_]
) -> FloatArray:
    """Interpolate (M, M, M) bins of a box linearly at the voxel centres of low..high."""
    along = []
    for axis, bins in enumerate(mask.shape):
        centres = np.arange(low[axis], high[axis]) + 0.5
        edge = max(float(box[axis + 3] - box[axis]), 1e-3)
        position = np.clip((centres - box[axis]) / edge * bins - 0.5, 0, bins - 1)
        along.append(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(bins))))
    return np.einsum("abc,za,yb,xc->zyx", mask, *along, optimize=True).astype(np.float32)


def leftover_components(
    dense: FloatArray, components: IntArray, candidates: list[Candidate], min_voxels: int
) -> list[Leftover]:
    """Dense components that no lesion touches, best first.

    Args:
        dense: (Z, Y, X) lesion probability.
        components: (Z, Y, X) its numbered components, as `label_components` gives them.
        candidates: lesions found by the detector.
        min_voxels: smaller components are noise.
    """
    taken = {0}
    for candidate in candidates:
        held = components[candidate.region][drawn(candidate)]
        taken.update(np.unique(held).tolist())
    found = []
    for number, place in enumerate(ndimage.find_objects(components), start=1):
        if number in taken or place is None:
            continue
        voxels = components[place] == number
        if voxels.sum() < min_voxels:
            continue
        ends = [edge.start for edge in place] + [edge.stop for edge in place]
        dense_score = float(dense[place][voxels].mean())
        found.append(Leftover(number, np.asarray(ends, dtype=np.float64), dense_score))
    found.sort(key=lambda item: -item.dense_score)
    return found[:MAX_LEFTOVERS]


def leftover_candidate(
    dense: FloatArray, components: IntArray, leftover: Leftover, description: Description
) -> Candidate:
    """Candidate of a component by itself; its neighbours are cleared from the crop.

    The detector saw nothing there: its share of the score is 0.
    """
    low = np.maximum(leftover.box[:3] - 1, 0).astype(int)
    high = np.minimum(leftover.box[3:] + 1, dense.shape).astype(int)
    place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    foreign = (components[place] > 0) & (components[place] != leftover.number)
    probability = np.where(foreign, 0, dense[place]).astype(np.float32)
    start = (int(low[0]), int(low[1]), int(low[2]))
    score = fused_score(0.0, description.score, leftover.dense_score)
    return Candidate(
        score, description.p_lung, description.mask_quality, leftover.box, start, probability, None
    )


def _inside(
    box: BoxArray, low: npt.NDArray[np.int_], high: npt.NDArray[np.int_]
) -> tuple[slice, slice, slice]:
    """Voxels of low..high whose centres lie in the box; at least one along each axis."""
    first = np.ceil(box[:3] - 0.5).astype(int)
    first = np.clip(first, low, high - 1)
    end = np.clip(np.ceil(box[3:] - 0.5).astype(int), first + 1, high)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first - low, end - low, strict=True))
    return (z, y, x)
