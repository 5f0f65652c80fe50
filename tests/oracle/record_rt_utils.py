"""Write `rt_utils.dcm`: contours that another program traced around a mask.

Needs rt-utils 1.2.7 (and OpenCV), in an environment of its own:
`python -m tests.oracle.record_rt_utils tests/oracle/rt_utils.dcm`
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume
from tests.dicom_fakes import write_series

C, S = float(np.cos(np.radians(20))), float(np.sin(np.radians(20)))
# Square pixels: rt-utils takes the distance between rows for that between columns.
GEOMETRY = Geometry(
    (7, 30, 34),
    (2.5, 0.8, 0.8),
    (-30.5, 12.25, -40.0),
    ((0.0, -S, C), (0.0, C, S), (1.0, 0.0, 0.0)),
)


def mask() -> np.ndarray:
    """A ring, a blob with ragged edges, a line of single voxels, and a lone voxel."""
    z, y, x = np.indices(GEOMETRY.shape)
    away = np.hypot(y - 11.3, x - 12.1)
    drawn = (away < 9 - z / 2) & (away > 3) & (z > 0)
    ragged = np.random.default_rng(0).random(GEOMETRY.shape) < 0.7
    drawn |= ragged & (np.hypot(y - 22, x - 25) < 6) & (z % 3 == 1)
    drawn[2, 2, 20:30] = drawn[5, 3, 30] = True
    return drawn


if __name__ == "__main__":
    from rt_utils import RTStructBuilder

    with TemporaryDirectory() as folder:
        write_series(Path(folder), Volume(np.zeros(GEOMETRY.shape, np.int16), GEOMETRY))
        structures = RTStructBuilder.create_new(dicom_series_path=folder)
        structures.add_roi(mask=mask().transpose(1, 2, 0), name="traced")
        structures.save(sys.argv[1])
