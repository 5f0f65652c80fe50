"""What makes one synthetic body differ from another."""

from dataclasses import dataclass

import numpy as np

VERTEBRA, RIB, PELVIS, NECK, SHAFT = range(5)

CORTEX_MM = (1.1, 1.0, 1.5, 2.6, 5.5)
"""Thickness of compact bone for each kind, before the patient's factor."""

MARROW_SHARE = (1.0, 0.7, 0.75, 0.55, -0.25)
"""Density inside each kind, relative to the patient's vertebral density; shafts hold fat."""


@dataclass(frozen=True)
class Patient:
    """One body. Lengths in mm, densities in HU.

    Attributes:
        scale: body size; multiplies most lengths.
        trabecular_hu: density of vertebral spongy bone, from osteoporotic to dense.
        cortex_hu: density of compact bone.
        cortex_share: cortical thickness relative to the usual one.
        curve_mm: how far the spine swings forward (lumbar) and back (thoracic).
        lean_mm: how far it swings sideways.
        fat_mm: thickness of the fat under the skin.
        wear: 0 a young spine, 1 a worn one; sets osteophytes, end-plate sclerosis, dents.
        anatomy_seed: drives every remaining detail of the anatomy.
    """

    scale: float
    trabecular_hu: float
    cortex_hu: float
    cortex_share: float
    curve_mm: float
    lean_mm: float
    fat_mm: float
    wear: float
    anatomy_seed: int


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw one body."""
    return Patient(
        scale=float(rng.uniform(0.9, 1.1)),
        trabecular_hu=float(rng.uniform(80, 280)),
        cortex_hu=float(rng.uniform(550, 950)),
        cortex_share=float(rng.uniform(0.8, 1.3)),
        curve_mm=float(rng.uniform(7, 15)),
        lean_mm=float(rng.normal(0, 3)),
        fat_mm=float(rng.uniform(8, 30)),
        wear=float(rng.uniform(0, 1)),
        anatomy_seed=int(rng.integers(1 << 31)),
    )
