"""What can go wrong where facts come from.

SourceError
├── Throttled             the endpoint asks for fewer queries; ``retry_after`` says for how long
├── Banned                the endpoint refuses this client; ``retry_after`` says for how long to stay away
├── QueryTimeout          one query took too long; a smaller one may pass
├── BadQuery              the endpoint does not accept the query's text
├── SourceDown            unreachable, overloaded, or cut off in the middle of an answer
├── BadAnswer             something came back that is no answer to the question
│   └── AnswerTooLarge    more bytes or rows than the settings allow; a smaller query may pass
├── CursorTooOld          the source no longer knows all that happened since the cursor
├── SourceWentBack        the source is older than what was read from it before
├── SnapshotUnreadable    the embedded RDF file or store is missing, corrupt or empty
└── CatalogueInvalid      the relation catalogue has a mistake

``SourceError`` itself is raised for settings that cannot work. Every message is one line and says
what to do next.
"""


class SourceError(Exception):
    """Base of all errors raised by a source."""


class Throttled(SourceError):
    """The endpoint asks for fewer queries.

    Attributes:
        retry_after: seconds the endpoint asks to wait, or None if it did not say.

    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Banned(SourceError):
    """The endpoint refuses this client.

    Attributes:
        retry_after: seconds to stay away: what the endpoint said, otherwise a day.

    """

    def __init__(self, message: str, retry_after: float = 86_400.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueryTimeout(SourceError):
    """A query ran out of time, at the endpoint or here."""


class BadQuery(SourceError):
    """The engine does not accept the query."""


class SourceDown(SourceError):
    """The source cannot be reached or breaks off; it may be back soon."""


class BadAnswer(SourceError):
    """What came back is not an answer to the question."""


class AnswerTooLarge(BadAnswer):
    """The answer exceeds the bounds on its bytes or rows."""


class CursorTooOld(SourceError):
    """The cursor lies further back than the source can answer for."""


class SourceWentBack(SourceError):
    """The source's data ends before what was read from it before."""


class SnapshotUnreadable(SourceError):
    """The embedded RDF data cannot be used."""


class CatalogueInvalid(SourceError):
    """A relation in a catalogue file is wrong."""
