"""From other tools' dataset folders to ours; scans are linked, the source is never edited."""

from bonemet_auto.convert.foreign import ForeignCase, ForeignDataset, open_foreign
from bonemet_auto.convert.write import Converted, choose_classes, convert_dataset

__all__ = [
    "Converted",
    "ForeignCase",
    "ForeignDataset",
    "choose_classes",
    "convert_dataset",
    "open_foreign",
]
