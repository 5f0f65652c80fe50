"""Lesions: shape, matter and place, in any CT with a bone mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bonemet_auto.geometry import Triple
from bonemet_auto.phantom.canvas import Array, Box, coverage, smooth_noise

Matter = Literal["lytic", "blastic", "mixed"]

OTHER_LOOK_SHARE = 0.1
DIAMETER_RANGE_MM = (5.0, 40.0)
SMALLEST_DENSE_MM = 8.0
"""Below this size, dense spots are bone islands, and rims or patches blur into what is around."""
LEAST_CONTRAST_HU = 60.0

_N_ATTEMPTS = 40
_MARGIN_MM = 14.0
_LEAST_SHARE_IN_BONE = 0.6
_LEAST_VOXELS = 12


@dataclass(frozen=True)
class Look:
    """How a lesion appears; lengths in mm."""

    is_lung: bool
    matter: Matter
    is_ragged: bool
    breach_mm: float
    has_rim: bool
    is_subtle: bool
    diameter_mm: float

    @property
    def smallest_mm(self) -> float:
        """Least diameter at which this look can still be recognised."""
        plain = self.matter == "lytic" and not self.has_rim
        return DIAMETER_RANGE_MM[0] if plain else SMALLEST_DENSE_MM


@dataclass(frozen=True)
class PlantedLesion:
    """One lesion as it lies in the scan.

    Attributes:
        instance: id in the instance map.
        is_lung: class of its patient, which `look` follows with exceptions.
        look: appearance.
        volume_mm3: volume of its mask.
        contrast_hu: density of the lesion minus that of the bone around it, before noise.
    """

    instance: int
    is_lung: bool
    look: Look
    volume_mm3: float
    contrast_hu: float


def draw_look(is_lung: bool, rng: np.random.Generator) -> Look:
    """Draw an appearance; one lesion in ten looks like the other class."""
    lung_look = is_lung != (rng.uniform() < OTHER_LOOK_SHARE)
    low, high = np.log(DIAMETER_RANGE_MM)
    diameter = float(np.exp(low + (high - low) * rng.uniform() ** 0.9))
    if lung_look:
        is_mixed = diameter >= SMALLEST_DENSE_MM and rng.uniform() < 0.25
        matter: Matter = "mixed" if is_mixed else "lytic"
        breach, rim = rng.uniform() < 0.6, False
    else:
        diameter = max(diameter, SMALLEST_DENSE_MM)
        matter = "blastic" if rng.uniform() < 0.6 else "lytic"
        breach, rim = rng.uniform() < 0.06, matter == "lytic"
    return Look(
        is_lung=is_lung,
        matter=matter,
        is_ragged=lung_look,
        breach_mm=float(rng.uniform(2, 9)) if breach else 0.0,
        has_rim=rim,
        is_subtle=bool(rng.uniform() < 0.3),
        diameter_mm=diameter,
    )


def plant_lesions(
    hu: Array,
    bone: npt.NDArray[np.bool_],
    spacing_mm: Triple,
    classes: Sequence[bool],
    rng: np.random.Generator,
    noise: Array | None = None,
) -> tuple[npt.NDArray[np.uint16], tuple[PlantedLesion, ...]]:
    """Plant lesions into the bone of a scan, in place.

    Args:
        hu: (z, y, x) float32 HU; changed only near the lesions.
        bone: (z, y, x) mask of whole bones, marrow included.
        spacing_mm: voxel edges (z, y, x).
        classes: for each lesion, whether it is a lung-cancer metastasis.
        rng: source of every choice.
        noise: (z, y, x) noise to lay into the lesions of a scan that is noisy already.

    Returns:
        Instance map (ids from 1) and one record for each id. Lesions that find no room are left
        out, so there may be fewer than asked for.
    """
    instances = np.zeros(hu.shape, dtype=np.uint16)
    planted: list[PlantedLesion] = []
    seeds = np.flatnonzero(bone)
    if not len(seeds):
        return instances, ()
    for is_lung in classes:
        look = draw_look(is_lung, rng)
        for _ in range(_N_ATTEMPTS):
            centre = np.unravel_index(int(rng.choice(seeds)), bone.shape)
            site = _find_site(bone, centre, spacing_mm, look, rng)
            if site is None or instances[site.box][site.occupancy > 0.1].any():
                continue
            contrast = _fill(hu, bone, site, look, spacing_mm, rng, noise)
            mask = site.occupancy > 0.5
            instances[site.box][mask] = len(planted) + 1
            volume = float(mask.sum() * np.prod(spacing_mm))
            planted.append(PlantedLesion(len(planted) + 1, is_lung, look, volume, contrast))
            break
    return instances, tuple(planted)


@dataclass(frozen=True)
class _Site:
    """Place and shape of a lesion: signed distance and occupancy on a box of the scan."""

    box: Box
    distance_mm: Array
    occupancy: Array
    bone_mm: Array


def _find_site(
    bone: npt.NDArray[np.bool_],
    seed: tuple[np.intp, ...],
    spacing_mm: Triple,
    look: Look,
    rng: np.random.Generator,
) -> _Site | None:
    """Shape a lesion around a bone voxel, or None where it does not fit."""
    reach = look.diameter_mm + _MARGIN_MM
    box = _box_around(seed, reach, spacing_mm, bone.shape)
    inside = bone[box]
    depth = ndimage.distance_transform_edt(inside, spacing_mm)
    local = tuple(int(s) - b.start for s, b in zip(seed, box, strict=True))
    centre = _deepest_near(depth, local, spacing_mm, min(6.0, look.diameter_mm / 2))
    room = 1.7 if look.breach_mm else 1.25
    radius = min(look.diameter_mm / 2, room * float(depth[centre]))
    if 2 * radius < look.smallest_mm:
        return None
    outside = ndimage.distance_transform_edt(~inside, spacing_mm)
    bone_mm = (outside - depth + np.where(inside, 1, -1) * 0.5 * spacing_mm[2]).astype(np.float32)
    shape = _shape_distance(inside.shape, centre, radius, spacing_mm, look, rng)
    limit = bone_mm - look.breach_mm if look.breach_mm else bone_mm + 0.6
    distance = np.maximum(shape, limit)
    occupancy = coverage(distance, 2.0 if look.is_ragged else 1.4)
    mask = occupancy > 0.5
    if mask.sum() < _LEAST_VOXELS or inside[mask].mean() < _LEAST_SHARE_IN_BONE:
        return None
    main = _main_component(mask)
    occupancy = np.where(ndimage.binary_dilation(main, iterations=2), occupancy, 0)
    occupancy[mask & ~main] = 0
    return _Site(box, distance, occupancy.astype(np.float32), bone_mm)


def _box_around(
    seed: tuple[np.intp, ...], reach_mm: float, spacing_mm: Triple, shape: tuple[int, ...]
) -> Box:
    """Box of the scan within a distance of a voxel."""
    z, y, x = (
        slice(max(int(s - reach_mm / step), 0), min(int(s + reach_mm / step) + 1, count))
        for s, step, count in zip(seed, spacing_mm, shape, strict=True)
    )
    return z, y, x


def _deepest_near(
    depth: npt.NDArray[np.float64], local: tuple[int, ...], spacing_mm: Triple, reach_mm: float
) -> tuple[int, ...]:
    """Voxel of greatest depth within a distance of another, so that lesions lie inside bone."""
    near = tuple(
        slice(max(int(i - reach_mm / step), 0), int(i + reach_mm / step) + 1)
        for i, step in zip(local, spacing_mm, strict=True)
    )
    best = np.unravel_index(int(depth[near].argmax()), depth[near].shape)
    return tuple(int(i) + n.start for i, n in zip(best, near, strict=True))


def _main_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Largest connected part of a mask."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def _shape_distance(
    shape: tuple[int, ...],
    centre: tuple[int, ...],
    radius_mm: float,
    spacing_mm: Triple,
    look: Look,
    rng: np.random.Generator,
) -> Array:
    """Near-signed distance (mm) to a turned ellipsoid with a smooth or ragged surface."""
    offsets = np.stack(
        np.meshgrid(
            *(
                (np.arange(n) - c) * step
                for n, c, step in zip(shape, centre, spacing_mm, strict=True)
            ),
            indexing="ij",
        )
    ).astype(np.float32)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.normal(0, 0.18, size=3))
    stretch /= np.prod(stretch) ** (1 / 3)
    rows = (turn / stretch[:, None]).astype(np.float32)
    turned = [row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in rows]
    length = np.sqrt(turned[0] ** 2 + turned[1] ** 2 + turned[2] ** 2)
    wave = max(0.8 * radius_mm, 2.5)
    z, y, x = shape
    rough = smooth_noise(rng, (z, y, x), spacing_mm, (wave,) * 3)
    detail = smooth_noise(rng, (z, y, x), spacing_mm, (max(0.35 * radius_mm, 1.8),) * 3)
    bumps = (0.17 * rough + 0.13 * detail) if look.is_ragged else 0.07 * rough
    return np.asarray(length - radius_mm * (1 + np.clip(bumps, -0.45, 0.45)), dtype=np.float32)


def _fill(
    hu: Array,
    bone: npt.NDArray[np.bool_],
    site: _Site,
    look: Look,
    spacing_mm: Triple,
    rng: np.random.Generator,
    noise: Array | None,
) -> float:
    """Replace bone by the lesion's matter; return its contrast to the bone around it (HU)."""
    old = hu[site.box]
    around = (site.distance_mm > 1) & (site.distance_mm < 6) & (site.bone_mm < -2.5)
    if not around.any():
        around = (site.bone_mm < 0) & (site.occupancy == 0)
    surround_hu = float(old[around].mean()) if around.any() else 200.0
    z, y, x = old.shape
    patches = smooth_noise(rng, (z, y, x), spacing_mm, (3.5, 3.5, 3.5))
    matter_hu = _matter(look, surround_hu, patches, rng)
    rim = np.zeros_like(old)
    if look.has_rim:
        width_mm = float(np.clip(-0.16 * site.distance_mm.min(), 0.6, 1.2))
        band = np.exp(-(((site.distance_mm + 0.7 * width_mm) / width_mm) ** 2)) * coverage(
            site.bone_mm, 1.5
        )
        matter_hu = matter_hu + band * (float(rng.uniform(350, 700)) - matter_hu)
        rim = 0.5 * band
    share = np.maximum(site.occupancy, np.where(site.occupancy > 0, rim, 0))
    if noise is not None:
        matter_hu = matter_hu + noise[site.box]
    old += share * (matter_hu - old)
    core = site.occupancy > 0.9
    return float(old[core].mean() - surround_hu) if core.any() else 0.0


def _matter(look: Look, surround_hu: float, patches: Array, rng: np.random.Generator) -> Array:
    """HU of a lesion's matter, at least `LEAST_CONTRAST_HU` away from the bone around it."""
    soft = float(rng.uniform(20, 90))
    dense = float(rng.uniform(400, 1100))
    gap = float(rng.uniform(LEAST_CONTRAST_HU, 120))
    if look.is_subtle and surround_hu > soft + LEAST_CONTRAST_HU:
        soft = max(surround_hu - gap, soft)
    elif abs(surround_hu - soft) < LEAST_CONTRAST_HU:
        soft = surround_hu + (gap if surround_hu < soft else -gap)
    dense = surround_hu + 1.6 * gap if look.is_subtle else max(dense, surround_hu + 2 * gap)
    if look.matter == "lytic":
        return np.asarray(soft + 8 * patches, dtype=np.float32)
    blastic = surround_hu + (dense - surround_hu) * np.clip(1 + 0.35 * patches, 0.3, 1.7)
    if look.matter == "blastic":
        return np.asarray(blastic, dtype=np.float32)
    islets = coverage(0.5 - patches, 0.8)
    return np.asarray(soft + 0.6 * islets * (blastic - soft), dtype=np.float32)
