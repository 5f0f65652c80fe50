"""The network and its 3D operations: torch only, no file access."""
