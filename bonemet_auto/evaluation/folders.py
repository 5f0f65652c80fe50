"""What lies in a folder of references or predictions: our format, plain masks, or nnDetection's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, RootModel

from bonemet_auto.errors import DataError
from bonemet_auto.images import find_images, list_images
from bonemet_auto.schema import Box, Theirs

Kind = Literal["described", "masks", "boxes"]

_BOXES_ENDING = "_boxes.json"


class ScoredInstance(Theirs):
    """One prediction of nnDetection.

    `box` is in its order, z0 y0 z1 y1 x0 x1, where the first and the last voxel are outside.
    """

    score: float = Field(allow_inf_nan=False)
    box: Box | None = None


class ScoredInstances(RootModel[dict[int, ScoredInstance]]):
    """`CASE_boxes.json` of nnDetection, or the scores beside an instance map, by instance id."""

    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class CaseFiles:
    """Files of a folder by case id.

    Attributes:
        kind: "described" has a JSON file beside each map, "masks" none beside any, "boxes" no maps.
        paths: maps; of "boxes" the JSON files.
        note: how they are read, where that is not our format; else empty.
    """

    kind: Kind
    paths: dict[str, Path]
    note: str = ""


def open_references(ref: Path) -> CaseFiles:
    """Find the annotated cases of a folder: maps with CASE.json, as in `labelsTs`, or masks alone.

    Raises:
        DataError: no such folder, nothing in it, or two maps of one case.
    """
    maps = find_images(ref)
    if _described(maps):
        return CaseFiles("described", maps)
    note = (
        f"{ref}: no CASE.json beside any mask, so each connected component of a value is a lesion "
        "of unknown source"
    )
    return CaseFiles("masks", maps, note)


def open_predictions(pred: Path) -> CaseFiles:
    """Find the predicted cases of a folder.

    Raises:
        DataError: no such folder, nothing in it that can be read, or two maps of one case.
    """
    boxes = {
        path.name.removesuffix(_BOXES_ENDING): path
        for path in (sorted(pred.glob(f"*{_BOXES_ENDING}")) if pred.is_dir() else ())
        if not path.name.startswith(".") and holds_scores(path)
    }
    if boxes:
        note = (
            f"{pred}: boxes as nndet_boxes2nii writes them, so hits are counted by the IoU of "
            "boxes, figures of outlines are left out, and no source is estimated"
        )
        return CaseFiles("boxes", boxes, note)
    _refuse_pickles(pred)
    maps = find_images(pred)
    described = _described(maps)
    if not described:
        note = (
            f"{pred}: no CASE.json beside any mask, so each connected component of a value is a "
            "lesion with score 1 and no source estimate"
        )
        return CaseFiles("masks", maps, note)
    scored = any(map(holds_scores, described))
    note = f"{pred}: scored instances as of nnDetection, without source estimates" if scored else ""
    return CaseFiles("described", maps, note)


def holds_scores(path: Path) -> bool:
    """Whether a JSON file is a table with instance ids as keys, as nnDetection has it, not ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False  # the reader of our own format says what is wrong with it
    return isinstance(content, dict) and all(key.isdecimal() for key in content)


def _described(maps: dict[str, Path]) -> list[Path]:
    beside = [path.parent / f"{case}.json" for case, path in maps.items()]
    return [path for path in beside if path.is_file()]


def _refuse_pickles(pred: Path) -> None:
    """Pickles run whatever code is in them."""
    pickles = sorted(pred.glob("*.pkl")) if pred.is_dir() else []
    if pickles and not list_images(pred):
        raise DataError(
            f"{pred} holds {len(pickles)} pickle files ({pickles[0].name} ...) and no masks or "
            "JSON files. Pickles can run any code, so they are not opened: let nnDetection's "
            "nndet_boxes2nii (--threshold 0 for all candidates) write CASE_boxes.json and "
            "CASE_boxes.nii.gz, and give their folder."
        )
