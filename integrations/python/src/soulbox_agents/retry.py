"""Which failures of a provider pass by themselves, and how long to wait for that."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from .model import StreamCut
from .shapes import field

# A body that came as part of a stream has a type in place of a status.
_TYPES = {"overloaded_error": 529, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504, "authentication_error": 401}
# Mistakes of the program, which are its own to hear of as they are.
MISTAKES = (TypeError, AttributeError, NameError, ImportError, AssertionError)


@dataclass(frozen=True)
class Retry:
    """Up to `attempts` in all. Waits `first` seconds, then twice as long each time, or as long as the provider says.

    A provider that wants more than `longest` has failed.
    """

    attempts: int = 4
    first: float = 0.5
    longest: float = 60

    def wait(self, attempt: int, failure: "Failure") -> float | None:
        """Seconds until the next attempt; None, when there is none."""
        if not failure.passing or attempt >= self.attempts:
            return None
        if failure.retry_after is not None:
            return failure.retry_after if failure.retry_after <= self.longest else None
        # Spread, so that many conversations do not come back at once.
        return min(self.longest, self.first * 2 ** (attempt - 1)) * (0.75 + random.random() / 2)


@dataclass(frozen=True)
class Failure:
    """`status` is of HTTP; None when there was no answer. `passing`, when another attempt makes sense."""

    cause: str
    status: int | None
    passing: bool
    retry_after: float | None = None


def failure(error: BaseException, secrets: Sequence[str]) -> Failure:
    """Reads an error of any of the clients."""
    status = _status(error)
    cause = _cause(error, status)
    for secret in secrets:
        cause = cause.replace(secret, "***")
    passing = status == 429 or status >= 500 if status else _is_connection(error)
    return Failure(cause, status, passing, _retry_after(error))


def _status(error: BaseException) -> int | None:
    body: Any = getattr(error, "body", None)
    for named in (field(field(body, "error"), "type"), field(body, "type")):
        if isinstance(named, str) and named in _TYPES:
            return _TYPES[named]
    for holder in (error, getattr(error, "response", None), getattr(error, "raw_response", None)):
        status = getattr(holder, "status_code", None)
        # An error amid a stream carries the 200 with which the stream began.
        if isinstance(status, int) and status >= 400:
            return status
    # watsonx.ai's client has it in the text alone.
    if type(error).__module__.startswith("ibm_watsonx_ai") and (said := re.search(r"\b([45]\d\d)\)\s*$", str(error))):
        return int(said[1])
    return None


def _cause(error: BaseException, status: int | None) -> str:
    body: Any = getattr(error, "body", None)
    said = field(field(body, "error"), "message") or field(body, "message") or getattr(error, "message", None) or str(error)
    lines = str(said).strip().splitlines() or [type(error).__name__]
    # Clients say "connection error" of everything; what is below names the address or the reset.
    below = error.__cause__ or error.__context__
    if status is None and below is not None and str(below).strip():
        lines[0] += f": {str(below).strip().splitlines()[0]}"
    return f"{status}: {lines[0][:300]}" if status else lines[0][:300]


def _is_connection(error: BaseException) -> bool:
    """Whether it failed on the way. Clients build on different HTTP libraries, and none of them is ours to import."""
    known = {"APIConnectionError", "APITimeoutError", "TransportError", "ClientError", "RequestException", "NoResponseError"}
    return isinstance(error, (StreamCut, ConnectionError, TimeoutError)) or any(one.__name__ in known for one in type(error).__mro__)


def _retry_after(error: BaseException) -> float | None:
    for holder in (getattr(error, "response", None), error):
        headers = getattr(holder, "headers", None)
        if not isinstance(headers, Mapping):
            continue
        said = {str(name).lower(): str(value) for name, value in headers.items()}
        try:
            if "retry-after-ms" in said:
                return max(0.0, float(said["retry-after-ms"]) / 1000)
            if "retry-after" in said:
                return max(0.0, float(said["retry-after"]))
        except ValueError:
            pass
        if "retry-after" in said:
            try:
                until = parsedate_to_datetime(said["retry-after"])
            except ValueError:
                return None
            until = until if until.tzinfo else until.replace(tzinfo=UTC)
            return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None
