"""Every error that a user can cause, as one small tree.

    BonemetError
    |-- DataError     the user's files: missing, broken, inconsistent
    |-- PlanError     a plan that no dataset, network or memory can satisfy
    |-- ModelError    a checkpoint or model folder that cannot be used
    |-- UsageError    flags and environment
    `-- StoppedError  a run was asked to stop, and can go on from where it stopped

A message says what is wrong, where (case, file), what was found against what was expected, and what
to do. Commands print it as one line and exit with 2, with 4 if the run was stopped; any other
exception is our bug and exits with 1.
"""


class BonemetError(Exception):
    """Base of all errors that have a cause and a cure outside this package."""


class DataError(BonemetError):
    """A file of the user is missing, broken or contradicts another one."""


class PlanError(BonemetError):
    """A plan is impossible, or does not fit the dataset or the model."""


class ModelError(BonemetError):
    """A checkpoint or a model folder is missing, broken or of another kind."""


class UsageError(BonemetError):
    """A flag, or the environment, asks for something that cannot be."""


class StoppedError(BonemetError):
    """A run ended early because it was asked to; its state is saved."""
