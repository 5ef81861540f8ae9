"""When a call is repeated, and after how many seconds."""

import email.utils
import time
from typing import TypeAlias

from .answers import Answer
from .errors import NoAnswerError
from .http import httpx

Outcome: TypeAlias = Answer | NoAnswerError
"""The result of one attempt."""

FIRST_PAUSE_SECONDS = 0.5  # if there is no Retry-After; doubled with each attempt
LONGEST_PAUSE_SECONDS = 60  # a service that asks for a longer pause is not waited for
# The server was not reached, or closed an idle connection; neither means that it is slow.
BROKEN_CONNECTION = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
PROBLEM = "application/problem+json"


def pause_seconds(outcome: Outcome, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None if another attempt would not help. `attempt` counts from 0."""
    backoff: float = FIRST_PAUSE_SECONDS * 2**attempt
    if isinstance(outcome, NoAnswerError):
        return backoff if isinstance(outcome.__cause__, BROKEN_CONNECTION) else None
    if outcome.status in (500, 502) and outcome.headers.get("Content-Type") != PROBLEM:
        return backoff
    if outcome.status not in (429, 503):
        return None
    pause = _retry_after(outcome.headers.get("Retry-After", ""))
    pause = backoff if pause is None else pause
    return pause if pause <= LONGEST_PAUSE_SECONDS else None


def _retry_after(value: str) -> float | None:
    """Seconds, from a number of seconds or from a date (RFC 9110, 10.2.3); None for any other value."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):  # OverflowError: a year or a day with very many digits
        return None
