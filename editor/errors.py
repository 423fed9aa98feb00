"""What can go wrong in the editor.

EditorError
├── ModelUnavailable      the model is missing, incomplete or of an unsupported kind
├── UnsupportedModel      the architecture has no entry in the adapter table
├── SettingsInvalid       the MEMIT settings do not fit the model
├── RequestInvalid        one edit request cannot be written (empty target, no subject in the prompt, ...)
├── CovarianceTooSmall    the text was too short for a well-conditioned solve
├── NumericalFailure      a non-finite value appeared
├── AdapterImpossible     a version cannot be told as a LoRA adapter of its base
└── Interrupted           the caller asked to stop; everything finished so far is in the cache

Every message is one line and says what to do next.
"""


class EditorError(Exception):
    """Base of all errors raised by the editor."""


class ModelUnavailable(EditorError):
    """The model could not be loaded."""


class UnsupportedModel(EditorError):
    """No adapter for this architecture."""


class SettingsInvalid(EditorError):
    """The settings do not fit the model."""


class RequestInvalid(EditorError):
    """An edit request is malformed."""


class CovarianceTooSmall(EditorError):
    """Too little text for the covariance."""


class NumericalFailure(EditorError):
    """A non-finite value appeared in the optimisation or the solve."""


class AdapterImpossible(EditorError):
    """A version cannot be told as a LoRA adapter of its base."""


class Interrupted(EditorError):
    """Raised from a progress callback to stop between two steps."""
