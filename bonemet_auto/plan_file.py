"""Reading `plan.json`, which may be a few lines of a person's own on top of another plan."""

import json
from pathlib import Path
from typing import Any

from bonemet_auto.errors import DataError
from bonemet_auto.files import require_file
from bonemet_auto.plan_schema import Plan
from bonemet_auto.schema import parse_json

PLAN_NAME = "plan.json"
INHERITS = "inherits_from"


def read_plan(path: Path, remedy: str) -> Plan:
    """Read and check a plan.

    A plan with `inherits_from` takes what it does not say itself from the plan of that name, whose
    folder lies beside its own; tables are merged key by key, lists replaced. Its name is its
    folder's.

    Args:
        path: the plan.
        remedy: what to do if it is missing.

    Raises:
        DataError: missing, broken, or inheriting from nothing or in a circle.
    """
    inherited = inherits(path)
    content = _merged(path, remedy, ())
    if inherited:
        content["name"] = path.parent.name
    return parse_json(json.dumps(content), Plan, str(path), DataError)


def inherits(path: Path) -> bool:
    """Whether a plan is there, written by hand, that inherits from another one."""
    return path.is_file() and INHERITS in _content(path, "")


def _merged(path: Path, remedy: str, heirs: tuple[Path, ...]) -> dict[str, Any]:
    if path in heirs:
        names = " -> ".join(heir.parent.name for heir in (*heirs, path))
        raise DataError(f"{path}: plans inherit in a circle ({names}). Break it.")
    content = _content(path, remedy)
    base = content.pop(INHERITS, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise DataError(f"{path}: {INHERITS} must be the name of a plan, found {base!r}.")
    source = path.parent.parent / base / PLAN_NAME
    missing = f"{path} inherits from plan '{base}': make that first, with --plan-name {base}."
    return _overlaid(_merged(source, missing, (*heirs, path)), content)


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _overlaid(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict)
        else value
        for key, value in above.items()
    }
    return below | both


def _content(path: Path, remedy: str) -> dict[str, Any]:
    text = require_file(path, remedy).read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}. Mend it.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a table of keys, found {type(content).__name__}.")
    return content
