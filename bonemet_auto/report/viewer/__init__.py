"""A page for each case that shows its lesions in slices and in 3D, from disk, without a network.

The viewer is NiiVue (BSD-2-Clause), vendored unchanged beside this file. Only boxes around lesions
go into a page, so that it stays small.
"""

import base64
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jinja2 import Template

from bonemet_auto.errors import DataError
from bonemet_auto.files import write_text
from bonemet_auto.geometry import Geometry
from bonemet_auto.images import Volume, read_instances, write_volume
from bonemet_auto.report.templates import load_template
from bonemet_auto.result_schema import CasePrediction, LesionRecord
from bonemet_auto.scans import Scan, read_scan
from bonemet_auto.schema import read_json

VIEWER = "viewer"
MARGIN_MM = 20.0
MOST_LESIONS = 12
"""Best lesions of a case that a page shows: it holds a crop of each."""

logger = logging.getLogger(__name__)

_LIBRARY = "niivue.umd.js"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Shown:
    record: LesionRecord
    ct: str
    mask: str


def write_viewer(out: Path, scans: Mapping[str, Scan]) -> None:
    """Write `viewer/CASE.html` of every predicted case whose scan can be read.

    Args:
        out: folder of predictions.
        scans: by case.
    """
    template = load_template("viewer/viewer.html")
    folder = out / VIEWER
    folder.mkdir(exist_ok=True)
    shutil.copy(_HERE / _LIBRARY, folder)
    shutil.copy(_HERE / "LICENSE-niivue", folder)
    for case, scan in scans.items():
        if (out / f"{case}.json").is_file():
            _write_page(out, case, scan, template)


def page_of(out: Path, case: str) -> Path:
    """Where a case's page lies, if there is one."""
    return out / VIEWER / f"{case}.html"


def _write_page(out: Path, case: str, scan: Scan, template: Template) -> None:
    try:
        record = read_json(out / f"{case}.json", CasePrediction, "Predict the case again.")
        lesions = _shown(record, read_scan(scan), read_instances(out / f"{case}.nii.gz"))
    except DataError as error:
        logger.warning("no viewer of case %s: %s", case, error)
        return
    page = template.render(case=case, patient=record.patient, lesions=lesions, margin_mm=MARGIN_MM)
    write_text(page_of(out, case), page)


def _shown(record: CasePrediction, scan: Volume, drawn: Volume) -> list[_Shown]:
    best = sorted(record.lesions, key=lambda lesion: -lesion.score)[:MOST_LESIONS]
    return [
        _Shown(lesion, _packed(_crop(scan, lesion)), _packed(_mask(_crop(drawn, lesion), lesion)))
        for lesion in best
    ]


def _crop(volume: Volume, lesion: LesionRecord) -> Volume:
    """The box of a lesion and a margin around it, where it lies in the patient."""
    geometry = volume.geometry
    margin = np.ceil(MARGIN_MM / np.asarray(geometry.spacing_mm)).astype(int)
    low = np.maximum(np.floor(lesion.box_voxel_zyx[:3]).astype(int) - margin, 0)
    high = np.minimum(np.ceil(lesion.box_voxel_zyx[3:]).astype(int) + margin, geometry.shape)
    z, y, x = (high - low).tolist()
    left, back, up = geometry.index_to_lps(low).tolist()
    place = Geometry((z, y, x), geometry.spacing_mm, (left, back, up), geometry.direction)
    return Volume(volume.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], place)


def _mask(crop: Volume, lesion: LesionRecord) -> Volume:
    return Volume((crop.array == lesion.id).astype(np.uint8), crop.geometry)


def _packed(volume: Volume) -> str:
    """A NIfTI file as text."""
    with TemporaryDirectory() as place:
        path = Path(place) / "crop.nii.gz"
        write_volume(path, volume)
        return base64.b64encode(path.read_bytes()).decode("ascii")
