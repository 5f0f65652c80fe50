"""Image files in and out: the one place that knows SimpleITK and its x, y, z order.

The pixels of NIfTI files are unpacked by `nifti`, which notices damage. SimpleITK still gives their
geometry, because it decides between the two affines of a NIfTI header as other ITK tools do; other
formats it reads whole, as it notices damage in them itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  its own documentation calls it so

from bonemet_auto.errors import DataError
from bonemet_auto.files import atomic_write, require_file
from bonemet_auto.geometry import Geometry, Index, Triple
from bonemet_auto.nifti import COPY_AGAIN, nifti_values

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
HU_RANGE = (-1024, 3071)

_LISTED_ENDINGS = ", ".join(ENDINGS)
_IN_MEMORY = Path("the image")


@dataclass(frozen=True)
class Volume:
    """Voxel values (z, y, x) and where they lie in the patient."""

    array: npt.NDArray[Any]
    geometry: Geometry


@dataclass(frozen=True)
class LesionCrop:
    """The part of an instance map that holds its instances.

    Attributes:
        array: uint16 ids (z, y, x) in the smallest box around them; (0, 0, 0) voxels without any.
        start: index of its first voxel in the map.
        geometry: of the whole map.
    """

    array: npt.NDArray[np.uint16]
    start: Index
    geometry: Geometry


def image_ending(name: str) -> str | None:
    """Which of `ENDINGS` a file name has, in whatever case it is written."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)


def strip_ending(name: str) -> str:
    """File name without its image ending, in whatever case that is written.

    Raises:
        DataError: the ending is none of `ENDINGS`.
    """
    ending = image_ending(name)
    if ending is None:
        raise DataError(f"{name} is no image file: expected an ending of {_LISTED_ENDINGS}.")
    return name[: -len(ending)]


def list_images(source: Path) -> dict[str, Path]:
    """Images of a folder (or one image file) by case id, in the order of the ids; may be empty.

    The id is the file name without ending and without the channel suffix `_0000`. Hidden files and
    sub-folders are passed over.

    Raises:
        DataError: two images of one case.
    """
    candidates = sorted(source.iterdir()) if source.is_dir() else [source]
    found: dict[str, Path] = {}
    for path in candidates:
        if path.name.startswith(".") or image_ending(path.name) is None or not path.is_file():
            continue
        case = strip_ending(path.name).removesuffix("_0000")
        if case in found:
            raise DataError(
                f"case '{case}' has two images in {path.parent}: {found[case].name} and "
                f"{path.name}. Keep one of them, or rename the other."
            )
        found[case] = path
    return dict(sorted(found.items()))


def find_images(source: Path) -> dict[str, Path]:
    """As `list_images`, for a place that must hold an image.

    Raises:
        DataError: no such place, no image in it, or two images of one case.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Give an image file or a folder of images.")
    found = list_images(source)
    if not found:
        raise DataError(f"{source} holds no image. Expected files ending in {_LISTED_ENDINGS}.")
    return found


def read_geometry(path: Path) -> Geometry:
    """Grid of an image, from its header alone.

    Raises:
        DataError: missing or unreadable file, not three-dimensional, sheared affine.
    """
    require_file(path, "Give the path of an image.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    return _geometry(path, reader, reader.GetNumberOfComponents())


def read_hu(path: Path) -> Volume:
    """CT as int16 Hounsfield units, rounded and saturated to `HU_RANGE`.

    Raises:
        DataError: as `read_geometry`, and damaged files, NaN or infinity.
    """
    array, geometry = _read_raw(path)
    return Volume(as_hu(array), geometry)


def as_hu(array: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Values (Z, Y, X) of any type as int16, rounded and saturated to `HU_RANGE`."""
    low, high = HU_RANGE
    if array.dtype.kind != "f":
        limits = np.iinfo(array.dtype)
        low, high = max(low, int(limits.min)), min(high, int(limits.max))
    hu = np.empty(array.shape, dtype=np.int16)
    # Slice by slice: a copy of the whole in double precision is four times the result.
    for part, values in zip(hu, array, strict=True):
        whole = np.rint(values) if array.dtype.kind == "f" else values
        part[...] = np.clip(whole, low, high)
    return hu


def read_instances(path: Path) -> Volume:
    """Instance map as uint16; 0 is background. Any type is fine as long as its values are ids.

    Raises:
        DataError: as `read_hu`, and values that are fractional, negative or above 65535.
    """
    array, geometry = _read_raw(path)
    _check_ids(path, array)
    return Volume(array.astype(np.uint16), geometry)


def crop_instances(path: Path) -> LesionCrop:
    """As `read_instances`, but only the box around the instances: most of a scan holds none.

    Raises:
        DataError: as `read_instances`.
    """
    array, geometry = _read_raw(path)
    _check_ids(path, array)
    # Each axis is looked at in what the axes before it have left.
    z = _drawn(array, 0)
    y = _drawn(array[z], 1)
    x = _drawn(array[z, y], 2)
    return LesionCrop(array[z, y, x].astype(np.uint16), (z.start, y.start, x.start), geometry)


def write_volume(path: Path, volume: Volume) -> None:
    """Write an image atomically; equal volumes give equal bytes."""
    with atomic_write(path) as temporary:
        sitk.WriteImage(to_sitk(volume), str(temporary), useCompression=True)


def to_sitk(volume: Volume) -> Any:  # noqa: ANN401  SimpleITK has no types
    """A SimpleITK image of a volume."""
    image = sitk.GetImageFromArray(volume.array)
    geometry = volume.geometry
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_lps_mm)
    image.SetDirection(np.asarray(geometry.direction)[::-1].T.flatten().tolist())
    return image


def from_sitk(image: Any) -> Volume:  # noqa: ANN401  SimpleITK has no types
    """A SimpleITK image in memory as a CT, int16 HU as `read_hu` gives them.

    Raises:
        DataError: not three-dimensional, or voxels without a value.
    """
    geometry = _geometry(_IN_MEMORY, image, image.GetNumberOfComponentsPerPixel())
    array = sitk.GetArrayFromImage(image).reshape(geometry.shape)
    if array.dtype.kind == "f":
        _refuse_non_finite(_IN_MEMORY, array)
    return Volume(as_hu(array), geometry)


def _read_raw(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    """Values as stored (rescaled where the header says so) and grid of an undamaged 3D file."""
    if not require_file(path, "Give the path of an image.").stat().st_size:
        raise DataError(f"{path} is empty (0 bytes). {COPY_AGAIN}.")
    if re.search(r"\.nii(\.gz)?$", path.name.lower()):
        flat = nifti_values(path)
        geometry = read_geometry(path)
    else:
        geometry = read_geometry(path)
        try:
            flat = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(-1)
        except RuntimeError as error:
            raise _unreadable(path, error) from None
    array = flat.reshape(geometry.shape)
    if array.dtype.kind == "f":
        _refuse_non_finite(path, array)
    return array, geometry


def _drawn(array: npt.NDArray[Any], axis: int) -> slice:
    """From the first to the last index along an axis with a value above 0."""
    others = tuple(other for other in range(3) if other != axis)
    above = np.flatnonzero(array.max(axis=others, initial=0))
    return slice(int(above[0]), int(above[-1]) + 1) if above.size else slice(0, 0)


def _check_ids(path: Path, array: npt.NDArray[Any]) -> None:
    """Refuse values that are no ids."""
    if array.dtype.kind == "f" and (array != np.rint(array)).any():
        example = float(array[array != np.rint(array)].flat[0])
        raise DataError(
            f"{path}: fractional instance id {example:g}. Ids must be whole numbers; a mask that "
            "was resampled with interpolation has to be resampled again with nearest neighbours."
        )
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise DataError(
            f"{path}: instance ids run from {low:g} to {high:g}, expected 0 (background) to 65535. "
            "Renumber the instances 1..n."
        )


def _refuse_non_finite(path: Path, array: npt.NDArray[Any]) -> None:
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise DataError(
            f"{path}: {bad} of {array.size} voxels are NaN or infinite. Every voxel needs a value: "
            "export the image again, or set those voxels to air (-1024 HU; 0 in a label map)."
        )


def _geometry(path: Path, image: Any, components: int) -> Geometry:  # noqa: ANN401  SimpleITK has no types
    """Grid of a SimpleITK image or reader; a flat image counts as one slice of 1 mm."""
    dimension, sizes = image.GetDimension(), list(image.GetSize())
    if components > 1 or any(size > 1 for size in sizes[3:]):
        raise DataError(
            f"{path} is not three-dimensional: {tuple(sizes[::-1])} voxels with "
            f"{components} value(s) each. Give one CT volume or 3D label map "
            "(split time points, channels or layers into files of their own)."
        )
    spacing, origin, axes = np.ones(3), np.zeros(3), np.eye(3)
    kept = min(dimension, 3)
    spacing[:kept] = image.GetSpacing()[:kept]
    origin[:kept] = image.GetOrigin()[:kept]
    axes[:kept, :kept] = np.reshape(image.GetDirection(), (dimension, dimension)).T[:kept, :kept]
    sizes = [*sizes[:3], 1][:3]
    if not (np.isfinite([spacing, origin, *axes]).all() and (spacing > 0).all()):
        raise DataError(f"{path}: spacing {tuple(spacing)} or position is invalid. {COPY_AGAIN}.")
    z, y, x = (_triple(axis) for axis in axes[::-1])
    shape: Index = (sizes[2], sizes[1], sizes[0])
    return Geometry(shape, _triple(spacing[::-1]), _triple(origin), (z, y, x))


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    first, second, third = (values + 0.0).tolist()  # adding 0 turns -0.0 into 0.0
    return (first, second, third)


def _unreadable(path: Path, error: RuntimeError) -> DataError:
    if "orthonormal" in str(error):
        return DataError(
            f"{path}: its affine is sheared (the axes are not at right angles; gantry tilt is the "
            "usual cause). Resample it to a rectangular grid, or mend sform and qform, first."
        )
    reason = str(error).strip().splitlines()[-1]
    return DataError(f"{path} cannot be read as an image ({reason}). {COPY_AGAIN}.")
