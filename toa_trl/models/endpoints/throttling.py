"""What a 429 says: how long to wait, or that waiting does not help."""

from __future__ import annotations

import re
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import time

from toa_trl.utils.files import parse_json

NO_QUOTA = re.compile(
    r"insufficient[_ -](quota|balance|funds|credits?)|billing[_ -]\w*limit"
    r"|credit balance is too low|exceeded your (current|monthly) quota",
    re.IGNORECASE,
)
LATER = re.compile(r"retry|try again|per[_ -]?(second|minute)", re.IGNORECASE)


def is_out_of_quota(text: bytes, retry_after: str | None) -> bool:
    """Return whether a 429 is about a quota that is used up, so that waiting does not help."""
    try:
        error = parse_json(text)["error"]
        codes = {str(error.get("code")).lower(), str(error.get("type")).lower()}
        said = str(error.get("message"))
    except (ValueError, TypeError, KeyError, AttributeError):
        codes, said = set(), text.decode("utf-8", "replace")
    if any(NO_QUOTA.search(code) for code in codes):
        return True
    return bool(NO_QUOTA.search(said)) and not retry_after and not LATER.search(said)


def retry_after_s(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date."""
    if retry_after is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    return None
