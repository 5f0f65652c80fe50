"""Sacrum, hip bones and femora."""

import numpy as np
import numpy.typing as npt

from bonemet_auto.phantom.canvas import Array, Canvas, capsule, ellipsoid
from bonemet_auto.phantom.patient import NECK, PELVIS, SHAFT, Patient

HIP_MM = (88.0, -8.0, -122.0)
HEAD_RADIUS_MM = 23.5

SACRUM_MM = (
    (-14.0, 6.0, 25.0, 16.0),
    (-40.0, 19.0, 21.0, 13.0),
    (-63.0, 31.0, 18.0, 10.0),
    (-83.0, 38.0, 15.0, 8.0),
    (-99.0, 38.0, 12.0, 7.0),
    (-112.0, 32.0, 8.0, 6.0),
)
"""Height, backward position, half width and half depth of the sacral segments."""

_WING_SLOPE = 1.16
"""Path along x through a plate of unit thickness that leans as the wing does."""

WING_OUTLINE_MM = np.array(
    [(48, -12), (40, 16), (18, 27), (-10, 31), (-38, 26), (-64, 6), (-72, -16), (-58, -38),
     (-46, -62), (-44, -92), (-8, -108), (28, -104), (22, -74), (40, -62), (52, -42)],
    dtype=np.float64,
)  # fmt: skip
"""Outline (y, z) of the iliac wing seen from its side."""


def draw_pelvis(canvas: Canvas, patient: Patient) -> None:
    """Draw everything below the spine."""
    _draw_sacrum(canvas, patient)
    for side in (-1, 1):
        _draw_wing(canvas, patient.scale, side)
        _draw_hip(canvas, patient.scale, side)
        _draw_femur(canvas, patient.scale, side)


def _draw_sacrum(canvas: Canvas, patient: Patient) -> None:
    """Five fused segments that taper along a backward arc, wings, crest and nerve holes."""
    k = patient.scale
    nodes = np.array(SACRUM_MM)
    for z, y, width, depth in _refined(nodes) * k:
        canvas.add_ellipsoid(PELVIS, (0, y, z), (width, depth, k * 13))
        canvas.add_ellipsoid(PELVIS, (0, y + depth + k * 11, z), (k * 4, k * 7, k * 12))
    for side in (-1, 1):
        for z, y, reach in (
            (-16, 13, 45),
            (-27, 19, 45),
            (-38, 24, 43),
            (-50, 29, 38),
            (-62, 33, 31),
            (-80, 38, 22),
        ):
            inner, outer = (0.0, k * y, k * z), (side * k * reach, k * (y + 6), k * (z - 4))
            canvas.add_capsule(PELVIS, inner, outer, (k * 12, k * 11))
        for index in range(4):
            z, y = nodes[index : index + 2, :2].mean(axis=0)
            front = np.array([side * k * (17 - 2 * index), k * (y - 18), k * z])
            hole = (front, front + np.array([side * 3.0, k * 42, 0.0]))
            _carve_rod(canvas, hole[0], hole[1], k * 4.5)
    _carve_rod(canvas, np.array([0, k * 30, k * 8]), np.array([0, k * 47, k * -75]), k * 7)


def _refined(nodes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Nodes with two more between each pair, slightly narrower there as old discs are."""
    steps = np.arange(0, len(nodes) - 0.9, 1 / 3)
    fine = np.stack([np.interp(steps, np.arange(len(nodes)), column) for column in nodes.T], axis=1)
    fine[:, 2:] *= 1 - 0.06 * np.sin(np.pi * steps)[:, None] ** 2
    return fine


def _carve_rod(
    canvas: Canvas,
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
    radius_mm: float,
) -> None:
    low, high = np.minimum(start, end) - radius_mm, np.maximum(start, end) + radius_mm
    canvas.carve((low, high), lambda x, y, z: capsule(x, y, z, start, end, (radius_mm, radius_mm)))


def _draw_wing(canvas: Canvas, k: float, side: int) -> None:
    """The iliac wing: a curved plate, thick at its crest, its joint and above the hip."""
    outline = WING_OUTLINE_MM * k
    low, high = outline.min(axis=0), outline.max(axis=0)
    reach = (42 * k, 142 * k)
    corners = (
        (min(side * r for r in reach), low[0], low[1]),
        (max(side * r for r in reach), high[0], high[1]),
    )

    def distance(x: Array, y: Array, z: Array) -> Array:
        rim = polygon_distance(y, z, outline)
        middle, half_thickness = _wing_plate(y / k, z / k, rim / k)
        plate = np.abs(side * x - k * middle) / _WING_SLOPE - k * half_thickness
        edge = np.maximum(4 - np.abs(plate - rim), 0)
        return np.maximum(plate, rim) + edge * edge / 16

    canvas.add(PELVIS, corners, distance)


def _wing_plate(y: Array, z: Array, rim: Array) -> tuple[Array, Array]:
    """Mid-surface x and half the thickness (mm), as functions of y, z and depth."""
    front = np.clip((50 - y) / 122, 0, 1)
    height = np.clip((z + 60) / 90, -0.6, 1)
    middle = 50 + 52 * front**0.9 + 24 * front * (1 - front) + 20 * height * (0.25 + front)
    middle = np.where(z < -60, middle - 0.12 * (z + 60) * (1 - front), middle)
    crest = 3.2 * np.exp(-(((rim + 5) / 5) ** 2)) * (z > -45)
    joint = 4.5 * np.exp(-(((y - 34) / 16) ** 2) - ((z + 30) / 30) ** 2)
    hip = 5.0 * np.exp(-(((z + 100) / 26) ** 2))
    half_thickness = 2.9 + crest + joint + hip
    return middle.astype(np.float32), half_thickness.astype(np.float32)


def polygon_distance(u: Array, v: Array, corners: npt.NDArray[np.float64]) -> Array:
    """Signed distance in a plane to a closed polygon, negative inside."""
    u, v = np.broadcast_arrays(u, v)
    nearest = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, dtype=bool)
    for (u0, v0), (u1, v1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        du, dv = u1 - u0, v1 - v0
        along = np.clip(((u - u0) * du + (v - v0) * dv) / (du * du + dv * dv), 0, 1)
        nearest = np.minimum(nearest, np.hypot(u - u0 - along * du, v - v0 - along * dv))
        if dv:
            inside ^= ((v0 > v) != (v1 > v)) & (u < u0 + (v - v0) * du / dv)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def _draw_hip(canvas: Canvas, k: float, side: int) -> None:
    """Socket, pubis and ischium."""
    hip = np.array([side * HIP_MM[0], HIP_MM[1], HIP_MM[2]]) * k
    gap = k * (HEAD_RADIUS_MM + 3.5)
    outward = np.array([side * 0.75, -0.35, -0.55])

    def cup(x: Array, y: Array, z: Array) -> Array:
        ball = ellipsoid(x, y, z, hip, (gap + 7, gap + 7, gap + 7))
        opening = (x - hip[0]) * outward[0] + (y - hip[1]) * outward[1] + (z - hip[2]) * outward[2]
        return np.maximum(ball, opening - 3).astype(np.float32)

    canvas.add(PELVIS, (hip - gap - 8, hip + gap + 8), cup)
    for start, end, radii in (
        ((72, -28, -128), (30, -62, -128), (10, 7)),
        ((30, -62, -128), (11, -66, -134), (8, 10)),
        ((11, -66, -134), (12, -62, -152), (9, 8)),
        ((12, -62, -152), (42, -20, -182), (7, 8)),
        ((80, 18, -128), (62, 26, -168), (14, 14)),
        ((62, 26, -168), (48, -4, -186), (15, 11)),
    ):
        first, second = np.array(start) * k, np.array(end) * k
        first[0] *= side
        second[0] *= side
        canvas.add_capsule(PELVIS, first, second, (radii[0] * k, radii[1] * k))
    canvas.carve((hip - gap, hip + gap), lambda x, y, z: ellipsoid(x, y, z, hip, (gap, gap, gap)))


def _draw_femur(canvas: Canvas, k: float, side: int) -> None:
    """Head, neck, trochanters and shaft."""

    def at(x: float, y: float, z: float) -> npt.NDArray[np.float64]:
        return np.array([side * x, y, z]) * k

    radius = HEAD_RADIUS_MM * k
    canvas.add_ellipsoid(PELVIS, at(*HIP_MM), (radius, radius, radius))
    canvas.add_capsule(NECK, at(94, -7, -127), at(126, 4, -155), (17 * k, 16 * k))
    canvas.add_capsule(NECK, at(134, 10, -136), at(132, 8, -168), (12 * k, 17 * k))
    canvas.add_capsule(NECK, at(112, 18, -190), at(120, 8, -196), (8 * k, 12 * k))
    canvas.add_capsule(NECK, at(127, 5, -165), at(124, 4, -205), (18 * k, 15.5 * k))
    canvas.add_capsule(SHAFT, at(124, 4, -207), at(108, 0, -430), (15 * k, 13 * k))
