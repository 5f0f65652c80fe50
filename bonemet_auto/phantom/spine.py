"""Vertebrae, discs and ribs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bonemet_auto.phantom.canvas import Array, Canvas, Mark, capsule, capsule_corners, ellipsoid
from bonemet_auto.phantom.patient import RIB, VERTEBRA, Patient

Floats = npt.NDArray[np.float64]

N_LUMBAR, N_THORACIC = 5, 12
N_VERTEBRAE = N_LUMBAR + N_THORACIC


@dataclass(frozen=True)
class Vertebra:
    """Place and size of one vertebra; `frame` has its left, back and up directions as rows."""

    centre_mm: Floats
    frame: Floats
    half_width: float
    half_depth: float
    height: float
    is_thoracic: bool

    def at(self, left: float, back: float, up: float) -> Floats:
        """Body position of a point given in the vertebra's own directions, in mm."""
        return self.centre_mm + np.array([left, back, up]) @ self.frame


def spine_offset(patient: Patient, z_mm: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Sideways and backward displacement (mm) of the spine at a height."""
    z = np.asarray(z_mm, dtype=np.float64) / patient.scale
    lean = patient.lean_mm * np.sin(2 * np.pi * z / 330)
    return lean, -patient.curve_mm * np.sin(2 * np.pi * np.clip(z, -30, 450) / 430)


def place_vertebrae(patient: Patient) -> list[Vertebra]:
    """Stack L5 to T1 on the sacrum, with discs between them."""
    rng = np.random.default_rng(patient.anatomy_seed)
    vertebrae = []
    top = 0.0
    for level in range(N_VERTEBRAE):
        share = level / (N_VERTEBRAE - 1)
        disc = patient.scale * np.interp(share, (0, 0.3, 0.4, 1), (10, 8.5, 5, 4))
        disc *= 1 - 0.4 * patient.wear * rng.uniform()
        height = patient.scale * np.interp(share, (0, 1), (28, 17)) * rng.uniform(0.96, 1.04)
        middle = top + disc + height / 2
        top = middle + height / 2
        (low_x, x, high_x), (low_y, y, high_y) = spine_offset(
            patient, [middle - 5, middle, middle + 5]
        )
        up = np.array([high_x - low_x, high_y - low_y, 10.0])
        up /= np.linalg.norm(up)
        left = np.cross((0.0, 1.0, 0.0), up)
        left /= np.linalg.norm(left)
        vertebrae.append(
            Vertebra(
                centre_mm=np.array([x, y, middle]),
                frame=np.stack([left, np.cross(up, left), up]),
                half_width=patient.scale * np.interp(share, (0, 0.5, 1), (25, 17, 13.5)),
                half_depth=patient.scale * np.interp(share, (0, 0.5, 1), (17.5, 14, 9.5)),
                height=height,
                is_thoracic=level >= N_LUMBAR,
            )
        )
    return vertebrae


def draw_spine(canvas: Canvas, patient: Patient, vertebrae: list[Vertebra]) -> None:
    """Draw all vertebrae with their wear, the ribs and the breastbone."""
    rng = np.random.default_rng(patient.anatomy_seed + 1)
    for vertebra in vertebrae:
        _draw_body(canvas, vertebra)
        _draw_arch(canvas, vertebra)
        _draw_wear(canvas, vertebra, patient, rng)
    for vertebra in vertebrae:
        if vertebra.is_thoracic:
            for side in (-1, 1):
                _draw_rib(canvas, patient, vertebra, side)
    for z in np.linspace(215, 345, 11) * patient.scale:
        middle, _, half_y = chest_at(patient, z)
        size = (16 * patient.scale, 6 * patient.scale, 16 * patient.scale)
        canvas.add_ellipsoid(RIB, (0, middle - half_y, z), size)


def _local(vertebra: Vertebra, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Coordinates in the vertebra's own directions."""
    cx, cy, cz = vertebra.centre_mm.astype(np.float32)
    dx, dy, dz = x - cx, y - cy, z - cz
    rows = vertebra.frame.astype(np.float32)
    left, back, up = (dx * row[0] + dy * row[1] + dz * row[2] for row in rows)
    return left, back, up


def body_distance(vertebra: Vertebra, x: Array, y: Array, z: Array) -> Array:
    """Signed distance to a vertebral body: a waisted cylinder with hollow end plates."""
    left, back, up = _local(vertebra, x, y, z)
    half_height = np.float32(vertebra.height / 2)
    rho = np.sqrt((left / vertebra.half_width) ** 2 + (back / vertebra.half_depth) ** 2)
    waist = 0.9 + 0.1 * np.minimum((up / half_height) ** 2, 1)
    side = (rho - waist) * np.float32(0.5 * (vertebra.half_depth + vertebra.half_width))
    plate = np.abs(up) - half_height + 1.3 * np.maximum(1 - rho * rho, 0)
    edge = np.maximum(3 - np.abs(side - plate), 0)
    return np.maximum(side, plate) + edge * edge / 12


def _draw_body(canvas: Canvas, vertebra: Vertebra) -> None:
    reach = max(vertebra.half_width, vertebra.height / 2) + 4
    corners = (vertebra.centre_mm - reach, vertebra.centre_mm + reach)
    canvas.add(VERTEBRA, corners, lambda x, y, z: body_distance(vertebra, x, y, z))


def _draw_arch(canvas: Canvas, v: Vertebra) -> None:
    """Pedicles, laminae, facets, transverse and spinous processes around the canal."""
    a, b, h = v.half_width, v.half_depth, v.height
    canal = max(11.0, 0.48 * a)
    thick = 0.13 * h
    back = b + 13
    spine_tip = (0, back + (16 if v.is_thoracic else 27), -(0.95 if v.is_thoracic else 0.3) * h)
    for side in (-1, 1):
        root, corner = (
            v.at(side * canal, 0.5 * b, 0.2 * h),
            v.at(side * (canal + 2), b + 7, 0.15 * h),
        )
        canvas.add_capsule(VERTEBRA, root, corner, (1.3 * thick, 1.25 * thick))
        mid = v.at(0, back + 6, -0.12 * h)
        canvas.add_capsule(VERTEBRA, corner, mid, (1.1 * thick, thick))
        outward = (2.0 * a, b + 22, 0.15 * h) if v.is_thoracic else (1.75 * a, b + 12, 0.1 * h)
        tip = v.at(side * outward[0], outward[1], outward[2])
        canvas.add_capsule(VERTEBRA, corner, tip, (1.2 * thick, 0.9 * thick))
        upper, lower = (
            v.at(side * (canal + 3), b + 8, 0.55 * h),
            v.at(side * canal, b + 14, -0.6 * h),
        )
        canvas.add_capsule(VERTEBRA, corner, upper, (1.3 * thick, thick))
        canvas.add_capsule(VERTEBRA, corner, lower, (1.2 * thick, 1.1 * thick))
    canvas.add_capsule(
        VERTEBRA, v.at(0, back + 5, -0.12 * h), v.at(*spine_tip), (1.1 * thick, thick)
    )
    _carve_canal(canvas, v, b + 7.5, 0.8 * canal)
    if not v.is_thoracic:
        keel = v.at(0, back + 24, -0.05 * h)
        canvas.add_capsule(VERTEBRA, v.at(0, back + 5, -0.1 * h), keel, (1.1 * thick, thick))


def _carve_canal(canvas: Canvas, v: Vertebra, back: float, radius_mm: float) -> None:
    """Free the canal of the spinal cord from rounded seams."""
    start, end = v.at(0, back, -0.6 * v.height), v.at(0, back, 0.6 * v.height)
    radii = (radius_mm, radius_mm)
    canvas.carve(
        capsule_corners(start, end, radius_mm), lambda x, y, z: capsule(x, y, z, start, end, radii)
    )


def _draw_wear(canvas: Canvas, v: Vertebra, patient: Patient, rng: np.random.Generator) -> None:
    """Vein canal, bone islands, end-plate sclerosis, osteophytes and dents; none is a lesion."""
    a, b, h = v.half_width, v.half_depth, v.height
    canvas.marks.append(
        Mark(
            tuple(v.at(0, 0.55 * b, 0)),
            (rng.uniform(2, 5), 0.4 * b, rng.uniform(1.5, 3)),
            20.0,
            0.8,
        )
    )
    if rng.uniform() < 0.15:
        spot = v.at(
            rng.uniform(-0.6, 0.6) * a, rng.uniform(-0.6, 0.4) * b, rng.uniform(-0.3, 0.3) * h
        )
        radius = rng.uniform(1.5, 3.5)
        canvas.marks.append(
            Mark(tuple(spot), (radius, radius, 1.3 * radius), rng.uniform(650, 1100))
        )
    for end in (-1, 1):
        if rng.uniform() < 0.45 * patient.wear:
            _draw_worn_plate(canvas, v, end, rng)
        if rng.uniform() < 0.15 + 0.15 * patient.wear:
            depth = rng.uniform(2.5, 5.5)
            dent = v.at(rng.uniform(-0.5, 0.5) * a, rng.uniform(-0.3, 0.5) * b, end * 0.52 * h)
            radii = (rng.uniform(3, 6), rng.uniform(3, 6), depth)
            _carve_dent(canvas, dent, radii)


def _draw_worn_plate(canvas: Canvas, v: Vertebra, end: int, rng: np.random.Generator) -> None:
    """Dense bone under one end plate, and spurs at its rim."""
    angle = rng.uniform(0.75 * np.pi, 2.25 * np.pi)
    left, back = v.half_width * np.cos(angle), v.half_depth * np.sin(angle)
    plate = v.at(0.5 * left, 0.5 * back, end * 0.42 * v.height)
    spread = (0.5 * v.half_width, 0.5 * v.half_depth, rng.uniform(2.5, 5))
    canvas.marks.append(Mark(tuple(plate), spread, rng.uniform(350, 600), rng.uniform(0.5, 0.9)))
    spur, beak = (
        v.at(left, back, end * 0.43 * v.height),
        v.at(1.17 * left, 1.22 * back, end * 0.58 * v.height),
    )
    canvas.add_capsule(VERTEBRA, spur, beak, (3.5, 1.5))


def _carve_dent(canvas: Canvas, centre: Floats, radii: tuple[float, ...]) -> None:
    """A dent of disc material into an end plate, with a dense wall."""
    corners = (centre - max(radii), centre + max(radii))
    canvas.carve(corners, lambda x, y, z: ellipsoid(x, y, z, centre, radii))


def _draw_rib(canvas: Canvas, patient: Patient, v: Vertebra, side: int) -> None:
    """One rib from its joint at the vertebra round the chest wall."""
    points = rib_course(patient, v, side)
    radii = np.interp(np.arange(len(points)), (0, 3, len(points) - 1), (5.0, 4.2, 5.0))
    radii *= patient.scale
    for index in range(len(points) - 1):
        ends = (float(radii[index]), float(radii[index + 1]))
        canvas.add_capsule(RIB, points[index], points[index + 1], ends)


def rib_course(patient: Patient, v: Vertebra, side: int) -> Floats:
    """(N, 3) points x, y, z mm along a rib, from the spine to its cartilage."""
    centre_y, half_x, half_y = chest_at(patient, v.centre_mm[2])
    head = v.at(side * (0.85 * v.half_width + 3), 0.75 * v.half_depth, 0.4 * v.height)
    neck = v.at(side * (2.0 * v.half_width), v.half_depth + 16, 0.2 * v.height)
    height = v.centre_mm[2]
    start = np.arctan2(neck[1] - centre_y, abs(neck[0]) / half_x * half_y)
    last = np.interp(height / patient.scale, (150, 190, 260), (0.35, -0.35, -0.75))
    angles = np.linspace(start - 0.16, last, 18)
    drop = np.interp(height / patient.scale, (150, 400), (75, 45)) * patient.scale
    share = np.linspace(0.08, 1, 18)
    arc = np.stack(
        [
            side * half_x * np.cos(angles),
            centre_y + half_y * np.sin(angles),
            height + 0.1 * v.height - drop * share**1.1,
        ],
        axis=1,
    )
    return np.concatenate([[head, neck], arc])


def chest_at(patient: Patient, z_mm: float) -> tuple[float, float, float]:
    """Centre y and half axes (x, y) in mm of the ellipse on which ribs lie at a height."""
    z = z_mm / patient.scale
    half_x = patient.scale * float(np.interp(z, (130, 200, 300, 400, 450), (130, 132, 125, 95, 60)))
    half_y = patient.scale * float(np.interp(z, (130, 200, 300, 400, 450), (98, 100, 92, 72, 48)))
    back = 46 * patient.scale + float(spine_offset(patient, z_mm)[1])
    return back - half_y, half_x, half_y
