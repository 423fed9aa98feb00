"""What can go wrong in the daemon itself.

DaemonError
├── ConfigInvalid       the configuration cannot be used
├── NameTaken           ``daemon`` resolves to another distribution
├── NothingPromoted     the command needs a state that has run once
├── ProbesOverlap       a probe is not apart from what shapes the weights
├── MeasurementInvalid  what the gate compares with cannot be measured
├── TooEarly            a source asked to be left alone for a while
├── PublishFailed       a target could not be brought to answer with a version
│   └── Disagrees       its engine answers otherwise than the version
├── NotPublished        a version is promoted, and not all targets answer with it yet
└── NotPossible         the request does not fit the present state

Errors of the rooms (``SourceError``, ``EditorError``, ``StoreError``) pass through; every message is one line and
says what to do next.
"""


class DaemonError(Exception):
    """Base of the daemon's own errors."""


class ConfigInvalid(DaemonError):
    """The configuration cannot be used."""


class NameTaken(DaemonError):
    """Another distribution owns the package name."""


class NothingPromoted(DaemonError):
    """No version exists yet."""


class ProbesOverlap(DaemonError):
    """A probe is not apart from what shapes the weights."""


class MeasurementInvalid(DaemonError):
    """What the gate compares with cannot be measured."""


class TooEarly(DaemonError):
    """A source asked to be left alone, and its time has not come."""


class PublishFailed(DaemonError):
    """A target could not be brought to answer with a version."""


class Disagrees(PublishFailed):
    """An engine answers otherwise than the version it was given."""


class NotPublished(DaemonError):
    """A version is promoted, and not all targets answer with it yet."""


class NotPossible(DaemonError):
    """The request does not fit the present state."""
