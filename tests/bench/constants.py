"""Constants of the package, changed for a while."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def changed(constants: Mapping[str, Any]) -> Iterator[None]:
    """With other values of constants, by dotted name within `bonemet_auto`."""
    with ExitStack() as stack:
        for name, value in constants.items():
            module, constant = name.rsplit(".", 1)
            place = importlib.import_module(f"bonemet_auto.{module}")
            stack.enter_context(patch.object(place, constant, value))
        yield
