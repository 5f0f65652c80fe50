"""A seeded synthetic CT cohort with bone lesions, and lesions planted into real CTs."""

from bonemet_auto.phantom.cohort import write_phantom_dataset
from bonemet_auto.phantom.lesions import plant_lesions

__all__ = ["plant_lesions", "write_phantom_dataset"]
