"""Scans of any input by case: image files, DICOM studies, or a zip of either."""

import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory

from bonemet_auto.dicom import Series, Study, find_studies, read_pixels
from bonemet_auto.errors import DataError
from bonemet_auto.images import ENDINGS, Volume, as_hu, list_images, read_hu
from bonemet_auto.pseudonyms import name_studies

logger = logging.getLogger(__name__)

Scan = Path | Series
"""An image file, or a series of DICOM slices."""

_ZIPPED_BY_THE_WAY = ("__MACOSX", ".DS_Store")


def read_scan(scan: Scan) -> Volume:
    """CT as int16 Hounsfield units, rounded and saturated to `images.HU_RANGE`.

    Raises:
        DataError: as `images.read_hu`; a series that is not one volume, with its reason.
    """
    if isinstance(scan, Path):
        return read_hu(scan)
    array = read_pixels(scan)
    if scan.geometry is None or array.shape != scan.geometry.shape:
        raise DataError("the pixels of the series do not fit its headers. Export it again.")
    return Volume(as_hu(array), scan.geometry)


def find_scans(source: Path, private: Path) -> dict[str, Scan]:
    """Scans of an image file or a folder, by case.

    Images are named after their files, and lie in the folder itself. DICOM slices may lie anywhere
    below it; each study is a case with a pseudonym, of which one series is taken (see
    `dicom.find_studies`).

    Args:
        source: an image file, or a folder of images, of DICOM slices, or of both.
        private: file that tells which study a pseudonym stands for; written where there are any.

    Raises:
        DataError: no such place, no scan in it, none that can be read, or two images of one case.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Give a CT, a folder of CTs or a zip of them.")
    scans: dict[str, Scan] = dict(list_images(source))
    studies = name_studies(find_studies(source), private) if source.is_dir() else {}
    if not scans and not studies:
        endings = ", ".join(ENDINGS)
        raise DataError(
            f"{source} holds no CT. Expected files ending in {endings}, or a folder of DICOM slices"
            " (the folder, not one slice of it)."
        )
    for case, study in studies.items():
        _tell_of_others(case, study)
    faults = {case: study.series.fault for case, study in studies.items() if study.series.fault}
    if not scans and len(faults) == len(studies):
        case, fault = next(iter(faults.items()))
        raise DataError(
            f"none of {len(studies)} DICOM studies in the input can be used. {case}: {fault}"
        )
    return scans | {case: study.series for case, study in studies.items()}


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The folder in a zip, in a temporary place; other sources as they are.

    Raises:
        DataError: the zip is damaged or locked by a password.
    """
    if source.suffix.lower() != ".zip" or not source.is_file():
        yield source
        return
    with TemporaryDirectory(prefix="bonemet_") as place:
        try:
            with zipfile.ZipFile(source) as archive:
                _require_room(source, archive, Path(place))
                archive.extractall(place)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as broken:
            raise DataError(
                f"{source} cannot be unpacked ({broken}). Unpack it yourself, or zip it again "
                "without a password."
            ) from None
        yield _without_wrapping(Path(place))


def _without_wrapping(folder: Path) -> Path:
    """The folder that was zipped, where it was zipped as such and not what it holds."""
    inside = [path for path in folder.iterdir() if path.name not in _ZIPPED_BY_THE_WAY]
    if len(inside) == 1 and inside[0].is_dir():
        return _without_wrapping(inside[0])
    return folder


def _require_room(source: Path, archive: zipfile.ZipFile, place: Path) -> None:
    needed, free = sum(entry.file_size for entry in archive.infolist()), disk_usage(place).free
    if needed > free:
        raise DataError(
            f"{source} unpacks to {needed / 1e9:.1f} GB, {place.parent} has {free / 1e9:.1f} GB "
            "left. Unpack it elsewhere and give the folder, or let $TMPDIR name a larger place."
        )


def _tell_of_others(case: str, study: Study) -> None:
    if not study.others:
        return
    left = "; ".join(
        f"{len(other.files)} slices" + (f" ({other.fault.split('.')[0]})" if other.fault else "")
        for other in study.others
    )
    logger.info(
        "%s: of %d series the one of %d slices is taken; left out: %s",
        case, 1 + len(study.others), len(study.series.files), left,
    )  # fmt: skip
