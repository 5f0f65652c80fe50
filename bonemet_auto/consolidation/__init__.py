"""Folds become one model: settings from cases that each fold had held out."""
