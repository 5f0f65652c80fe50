"""Prediction of whole scans: windows, consolidation of detections, outlines, files."""
