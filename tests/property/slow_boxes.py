"""Boxes that give trouble, and what is true of two boxes, in whole numbers and without rounding."""

import math
from fractions import Fraction

import torch
from hypothesis import strategies as st

WINDOW = (6, 7, 9)
KINDS = ("any", "voxel", "empty", "outside", "repeated", "touching", "shifted")


@st.composite
def awkward_boxes(draw, max_size=6, empty=True):
    """Lists of boxes of whole voxels in and around `WINDOW`, which may be empty lists.

    Some fill one voxel, have no volume (unless not `empty`), lie far outside, or repeat, touch or
    overlap one before.
    """
    boxes = []
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=max_size)):
        low = [draw(st.integers(-2, n)) for n in WINDOW]
        size = [draw(st.integers(1, 8)) for _ in WINDOW]
        axis = draw(st.integers(0, 2))
        if kind == "voxel":
            size = [1, 1, 1]
        elif kind == "empty" and empty:
            size[axis] = 0
        elif kind == "outside":
            low[axis] = draw(st.sampled_from([-40, 40]))
        elif kind in ("repeated", "touching", "shifted") and boxes:
            other = draw(st.sampled_from(boxes))
            low, size = other[:3], [b - a for a, b in zip(other[:3], other[3:], strict=True)]
            low[axis] += {"repeated": 0, "touching": size[axis], "shifted": 1}[kind]
        boxes.append([*low, *(a + b for a, b in zip(low, size, strict=True))])
    return boxes


def any_box(low, high, longest):
    """Starts anywhere in low..high, with edges from 0 to `longest`."""
    numbers = st.tuples(*[st.integers(low, high)] * 3, *[st.integers(0, longest)] * 3)
    return numbers.map(lambda b: [b[0], b[1], b[2], b[0] + b[3], b[1] + b[4], b[2] + b[5]])


def tensor(boxes, dtype=torch.float32):
    return torch.tensor(boxes, dtype=dtype).reshape(-1, 6)


def volume(box):
    return math.prod(max(0, box[axis + 3] - box[axis]) for axis in range(3))


def overlap(a, b):
    low = [max(a[axis], b[axis]) for axis in range(3)]
    high = [min(a[axis + 3], b[axis + 3]) for axis in range(3)]
    return volume([*low, *high])


def iou(a, b):
    union = volume(a) + volume(b) - overlap(a, b)
    return Fraction(overlap(a, b), union) if union else Fraction(0)


def giou(a, b):
    low = [min(a[axis], b[axis]) for axis in range(3)]
    high = [max(a[axis + 3], b[axis + 3]) for axis in range(3)]
    hull = volume([*low, *high])
    union = volume(a) + volume(b) - overlap(a, b)
    return iou(a, b) - (Fraction(hull - union, hull) if hull else 0)
