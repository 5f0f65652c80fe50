"""bonemet_auto: find, outline and source-classify bone tumours in CT. Research use only."""

__version__ = "0.1.0"
