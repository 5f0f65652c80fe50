"""Soft tissue around the bones, and how bone and soft tissue become Hounsfield units."""

import numpy as np

from bonemet_auto.geometry import Triple
from bonemet_auto.phantom.canvas import Array, Canvas, coverage, ellipsoid, smooth_noise
from bonemet_auto.phantom.patient import CORTEX_MM, MARROW_SHARE, Patient
from bonemet_auto.phantom.spine import Vertebra, chest_at, spine_offset

AIR_HU, LUNG_HU, FAT_HU, MUSCLE_HU = -1000.0, -860.0, -100.0, 55.0


def soft_tissue(
    canvas: Canvas,
    patient: Patient,
    vertebrae: list[Vertebra],
    spacing_mm: Triple,
    rng: np.random.Generator,
) -> Array:
    """HU of everything but bone, shape (z, y, x); about half of the scans carry contrast medium."""
    shape = canvas.bone_mm.shape
    fine = smooth_noise(rng, shape, spacing_mm, (5, 3, 3))
    coarse = smooth_noise(rng, shape, spacing_mm, (18, 14, 14))
    hu = np.full(shape, AIR_HU, dtype=np.float32)
    _draw_layers(hu, canvas, patient, fine, coarse)
    _draw_muscles(hu, canvas, patient, fine)
    enhanced = rng.uniform() < 0.5
    _draw_organs(hu, canvas, patient, 160.0 if enhanced else 0.0, fine)
    _draw_lungs(hu, canvas, patient, fine, coarse)
    _draw_canal_and_discs(hu, canvas, vertebrae, fine)
    return hu


def _draw_layers(hu: Array, canvas: Canvas, patient: Patient, fine: Array, coarse: Array) -> None:
    """Fat under the skin, the muscle wall, and bowel in fat inside it."""
    _, y, z = canvas.axes_mm
    depth = _skin_distance(canvas, patient)
    _blend(hu, coverage(depth, 1.5), FAT_HU + 6 * fine)
    depth += patient.fat_mm * (1 + 0.35 * np.clip(y / 60, 0, 1))
    # Zero crossings of a smooth field are thin curved sheets, as fat between muscles is.
    streaks = np.clip(0.8 - np.abs(coarse) / 0.1, 0, 1) + np.clip(fine + 0.4 * coarse - 1.8, 0, 0.5)
    muscle_hu = (MUSCLE_HU - 110 * streaks + 3 * coarse).astype(np.float32, copy=False)
    _blend(hu, coverage(depth + coarse), muscle_hu)
    del streaks, muscle_hu
    wall = np.interp(z / patient.scale, (-60, 0, 60), (42, 30, 20)).astype(np.float32)
    cavity = np.maximum(depth + wall + 2 * coarse, -140 * patient.scale - z)
    inside = coverage(cavity, 2) * coverage(y - 18 * patient.scale + 3 * coarse, 2)
    bowel = coverage(0.25 - coarse, 0.25)
    _blend(hu, inside, FAT_HU + bowel * (MUSCLE_HU - 15 - FAT_HU))


def _blend(hu: Array, share: Array, value: Array | float) -> None:
    """Move `hu` in place towards a value where `share` is above 0."""
    hu += share * (value - hu)


def _blend_near(
    hu: Array, canvas: Canvas, centre: Triple, radii: Triple, value: float, texture: Array
) -> None:
    """Blend one ellipsoidal organ, on its bounding box only."""
    reach = np.asarray(radii) + 2
    box = canvas.box(np.asarray(centre) - reach, np.asarray(centre) + reach)
    if box is not None:
        share = coverage(ellipsoid(*canvas.coordinates(box), centre, radii), 1.5)
        hu[box] += share * (value + 4 * texture[box] - hu[box])


def _skin_distance(canvas: Canvas, patient: Patient) -> Array:
    """Signed distance (mm) to the skin of trunk and thighs."""
    x, y, z = canvas.axes_mm
    k = patient.scale
    heights = z.ravel()
    chest = np.array([chest_at(patient, float(height)) for height in heights]).T
    hips = np.interp(heights / k, (-120, -40, 60, 140), (40, 34, 0, 0)) * k
    half_x = chest[1] + hips + 24 * k + patient.fat_mm
    half_y = chest[2] + 0.3 * hips + 23 * k + patient.fat_mm
    middle, half_x, half_y = (
        values.astype(np.float32)[:, None, None] for values in (chest[0], half_x, half_y)
    )
    trunk = (np.hypot(x / half_x, (y - middle) / half_y) - 1) * half_y
    trunk = np.maximum(trunk, np.float32(-175 * k) - z)
    radius = np.float32(84 * k + 0.5 * patient.fat_mm)
    thigh = np.hypot(np.abs(x) - np.float32(90 * k), y + np.float32(12 * k)) - radius
    legs = np.maximum(thigh, z + np.float32(100 * k))
    fold = np.maximum(40 - np.abs(trunk - legs), 0)
    return np.minimum(trunk, legs) - fold * fold / 160


def _draw_muscles(hu: Array, canvas: Canvas, patient: Patient, texture: Array) -> None:
    """Muscles along the spine: erector on the back, psoas in front."""
    k = patient.scale
    for side in (-1, 1):
        for z in np.arange(-40, 440, 30) * k:
            lean, back = (float(v) for v in spine_offset(patient, z))
            width = np.interp(z, (-40, 120, 430), (30, 34, 20)) * k
            centre = (lean + side * 30 * k, back + 42 * k, float(z))
            _blend_near(hu, canvas, centre, (width, 24 * k, 44 * k), MUSCLE_HU, texture)
        for z in np.arange(-60, 90, 18) * k:
            lean, back = (float(v) for v in spine_offset(patient, z))
            radius = np.interp(z, (-60, 0, 90), (20, 23, 11)) * k
            out = np.interp(z, (-60, 0, 90), (66, 46, 34)) * k
            front = np.interp(z, (-60, 0, 90), (-38, -8, 2)) * k
            centre = (lean + side * out, back + front, float(z))
            _blend_near(hu, canvas, centre, (radius, 1.1 * radius, 28 * k), MUSCLE_HU, texture)


def _draw_organs(
    hu: Array, canvas: Canvas, patient: Patient, enhancement_hu: float, texture: Array
) -> None:
    """Liver, kidneys, spleen, bladder, heart and the great vessels."""
    k = patient.scale
    organs = (
        ((-78, -70, 120), (70, 78, 85), 58, 0.35),
        ((85, -20, 140), (35, 45, 45), 50, 0.4),
        ((-58, -2, 75), (27, 23, 52), 32, 0.9),
        ((58, -2, 85), (27, 23, 52), 32, 0.9),
        ((0, -75, -120), (42, 36, 36), 8, 0.0),
        ((18, -95, 225), (62, 48, 50), 40, 0.9),
        ((0, -60, 330), (30, 40, 70), 40, 0.8),
    )
    for centre, radii, native_hu, uptake in organs:
        placed = (centre[0] * k, centre[1] * k, centre[2] * k)
        sized = (radii[0] * k, radii[1] * k, radii[2] * k)
        _blend_near(hu, canvas, placed, sized, native_hu + uptake * enhancement_hu, texture)
    for z in np.arange(-30, 330, 12) * k:
        lean, back = (float(v) for v in spine_offset(patient, z))
        left = float(np.interp(z, (0, 150, 250), (8, 10, 24))) * k
        front = float(np.interp(z, (0, 150, 250), (-29, -30, -14))) * k
        vessel = (lean + left, back + front, float(z))
        _blend_near(hu, canvas, vessel, (11 * k, 11 * k, 18 * k), 42 + enhancement_hu, texture)
        if z < 230 * k:
            vein = (lean - 16 * k, back - 30 * k, float(z))
            size = (12 * k, 9 * k, 18 * k)
            _blend_near(hu, canvas, vein, size, 40 + 0.7 * enhancement_hu, texture)


def _draw_lungs(hu: Array, canvas: Canvas, patient: Patient, fine: Array, coarse: Array) -> None:
    """Lungs above a domed diaphragm, beside spine and mediastinum."""
    x, y, z = canvas.axes_mm
    k = patient.scale
    if z.max() < 120 * k:
        return
    ellipses = np.array([chest_at(patient, float(height)) for height in z.ravel()]).T
    middle, half_x, half_y = (values.astype(np.float32)[:, None, None] for values in ellipses)
    chest = (np.hypot(x / half_x, (y - middle) / half_y) - 1) * half_y + 7 * k
    lean, back = (v.astype(np.float32)[:, None, None] for v in spine_offset(patient, z.ravel()))
    front = np.clip((back - 12 * k - y) / (60 * k), 0, 1)
    middle_width = (26 + 12 * front) * k - np.abs(x - lean) - 4 * coarse
    dome = (178 - 45 * np.clip((y + 70 * k) / (90 * k), 0, 1)) * k + 0 * x
    diaphragm = dome - 30 * k * np.clip((np.abs(np.abs(x) - 65 * k) / (65 * k)), 0, 1) ** 2 - z
    lung = np.maximum(np.maximum(chest, middle_width), diaphragm * np.float32(0.8))
    vessels = 700 * np.clip(fine - 1.9, 0, 1) + 25 * coarse
    _blend(hu, coverage(lung, 1.5), LUNG_HU + vessels)


def _draw_canal_and_discs(
    hu: Array, canvas: Canvas, vertebrae: list[Vertebra], texture: Array
) -> None:
    """Discs between bodies, and the sac of the spinal cord behind them."""
    for vertebra in vertebrae:
        disc = vertebra.at(0, 0, -vertebra.height / 2 - 4)
        reach = vertebra.half_width + 4
        box = canvas.box(disc - reach, disc + reach)
        if box is not None:
            x, y, z = canvas.coordinates(box)
            radii = (1.02 * vertebra.half_width, 1.05 * vertebra.half_depth, 9.0)
            share = coverage(ellipsoid(x, y, z, disc, radii), 1.5)
            hu[box] += share * (88.0 - hu[box])
        canal = vertebra.at(0, vertebra.half_depth + 8, -2)
        _blend_near(hu, canvas, tuple(canal), (8.5, 7.0, 24.0), 28.0, texture)


def compose(
    canvas: Canvas,
    soft_hu: Array,
    patient: Patient,
    spacing_mm: Triple,
    rng: np.random.Generator,
) -> Array:
    """Lay bone over soft tissue: compact shell, spongy inside with its own texture, marks.

    Args:
        canvas: drawn bones.
        soft_hu: (z, y, x) HU of everything else; changed in place and returned.
        patient: densities.
        spacing_mm: voxel edges (z, y, x).
        rng: texture.
    """
    shape = canvas.bone_mm.shape
    canvas.bone_mm[...] += 0.45 * smooth_noise(rng, shape, spacing_mm, (7, 7, 7))
    strands = smooth_noise(rng, shape, spacing_mm, (4.5, 1.4, 1.4))
    clouds = smooth_noise(rng, shape, spacing_mm, (10, 10, 10))
    where = np.nonzero(canvas.bone_mm < 1)
    depth, kind = canvas.bone_mm[where], canvas.kind[where]
    cortex = patient.cortex_share * np.asarray(CORTEX_MM, dtype=np.float32)[kind]
    marrow = patient.trabecular_hu * np.asarray(MARROW_SHARE, dtype=np.float32)[kind]
    spread = 0.25 * np.abs(marrow) + 12
    inner = marrow + spread * (0.7 * strands[where] + 0.5 * clouds[where])
    compact = (
        patient.cortex_hu * (1 + 0.12 * clouds[where]) * np.clip(0.75 + 0.12 * cortex, 0, 1.25)
    )
    hu = compact + coverage(depth + cortex, 1.2) * (inner - compact)
    soft_hu[where] += coverage(depth) * (hu - soft_hu[where])
    _draw_marks(canvas, soft_hu, clouds)
    return soft_hu


def _draw_marks(canvas: Canvas, hu: Array, clouds: Array) -> None:
    """Dense or lucent spots of a healthy or worn skeleton, kept to bone."""
    for mark in canvas.marks:
        reach = np.asarray(mark.radii_mm) + 3
        box = canvas.box(np.asarray(mark.centre_mm) - reach, np.asarray(mark.centre_mm) + reach)
        if box is None:
            continue
        distance = ellipsoid(*canvas.coordinates(box), mark.centre_mm, mark.radii_mm)
        share = coverage(distance + 0.8 * clouds[box], 1.5) * coverage(canvas.bone_mm[box])
        hu[box] += mark.strength * share * (mark.hu - hu[box])
