"""The errors npflow raises: each says what was given, what was expected and what to do."""


class NpflowError(Exception):
    """Base of all errors raised by npflow."""


class ShapeError(NpflowError, ValueError):
    """An array has a shape that does not fit."""


class DtypeError(NpflowError, TypeError):
    """An array has a dtype that does not fit."""


class DomainError(NpflowError, ValueError):
    """Data has values that the model gives no density."""


class NonFiniteError(NpflowError, ArithmeticError):
    """Data, a parameter or an intermediate result is NaN or infinite."""


class SingularMatrixError(NonFiniteError):
    """A matrix that has to be inverted is singular to the precision of its dtype."""


class ConfigurationError(NpflowError, ValueError):
    """An option or a combination of options that cannot work."""


class BackendError(NpflowError, RuntimeError):
    """The requested backend is unknown or cannot run on this machine."""


class OutOfMemoryError(NpflowError, MemoryError):
    """The device or the host has not enough memory for a batch."""


class CheckpointError(NpflowError, RuntimeError):
    """A saved file is missing, damaged, foreign or does not fit the model."""


class DatasetError(NpflowError, RuntimeError):
    """A dataset is unknown, missing or damaged."""


class InversionDriftError(NpflowError, ArithmeticError):
    """Walking back by inversion strayed too far from what forward saw."""


class CheckError(NpflowError, AssertionError):
    """A check of npflow.testing failed."""
