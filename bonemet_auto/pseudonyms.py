"""Names for DICOM studies that tell nobody who they are.

A pseudonym is a keyed hash: without the key nobody can try out names or numbers. Key and meaning
stand in one private file, which no result refers to.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from bonemet_auto.dicom import Study
from bonemet_auto.errors import DataError
from bonemet_auto.result_schema import PrivateStudies, PrivateStudy
from bonemet_auto.schema import read_json, write_json

_PRIVATE_MODE = 0o600
_LETTERS = 12
_REMEDY = "Bring it back, or give another output folder."


def name_studies(studies: Sequence[Study], private: Path) -> dict[str, Study]:
    """Studies by pseudonym, in its order; the same study and private file give the same one.

    Args:
        studies: any; none writes nothing.
        private: takes the key, and who each pseudonym is. Readable by its owner only.

    Raises:
        DataError: the private file is broken.
    """
    if not studies:
        return {}
    known = _known(private)
    named = {pseudonym(known.key, study.series.study_uid): study for study in studies}
    records = known.studies | {name: _record(study) for name, study in named.items()}
    if records != known.studies:
        write_json(private, known.model_copy(update={"studies": records}))
        private.chmod(_PRIVATE_MODE)
    return dict(sorted(named.items()))


def name_patients(studies: Sequence[Study], private: Path) -> dict[str, str]:
    """Pseudonym of each study's patient by study UID, under the key of the private file.

    A study without a patient id is a patient of its own.

    Raises:
        DataError: the private file is broken.
    """
    key = _known(private).key
    found = {}
    for study in studies:
        uid, patient_id = study.series.study_uid, study.series.patient_id.strip()
        whose = f"patient {patient_id}" if patient_id else f"patient of study {uid}"
        found[uid] = f"patient_{_keyed(key, whose)}"
    return found


def pseudonym(key: str, study_uid: str) -> str:
    """Name of a study under a key, both as text."""
    return f"study_{_keyed(key, study_uid)}"


def _keyed(key: str, text: str) -> str:
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()[:_LETTERS]


def _known(private: Path) -> PrivateStudies:
    """What the private file says; a file with a fresh key where there is none.

    Several processes may begin at once: the first one's key is everybody's.
    """
    if not private.exists():
        _create(private)
    known = read_json(private, PrivateStudies, _REMEDY)
    try:
        bytes.fromhex(known.key)
    except ValueError:
        raise DataError(f"{private}: the key is broken. {_REMEDY}") from None
    return known


def _create(private: Path) -> None:
    beside = private.with_name(f".new.{os.getpid()}.{private.name}")
    write_json(beside, PrivateStudies(key=secrets.token_hex(32), studies={}))
    beside.chmod(_PRIVATE_MODE)
    try:
        os.link(beside, private)
    except OSError:  # another process was first, or the file system has no links
        if not private.exists():
            beside.replace(private)
    finally:
        beside.unlink(missing_ok=True)


def _record(study: Study) -> PrivateStudy:
    series = study.series
    return PrivateStudy(
        patient_id=series.patient_id,
        study_uid=series.study_uid,
        series_uid=series.series_uid,
        folder=str(series.files[0].parent),
    )
