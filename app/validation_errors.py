"""Errors of pydantic, told to their reader in one line.

except ValidationError as error:
    raise StartupError(one_line(error.errors(include_input=False)))    # "port: Input should be … 65535; …"
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

SHOWN = 40  # characters of each name and value that came from outside


def one_line(errors: Iterable[Mapping[str, Any]], whole: str = "", spell: Callable[[str], str] = str) -> str:
    """`errors` are pydantic's, as from `ValidationError.errors()`: each becomes "place: what is wrong".

    `whole` names what was validated, for errors that have no place in it; `spell` spells the places.
    A value is shown where `errors` hold it and it is a text: leave values out (`include_input=False`) if they may be
    secret or large.
    """
    return "; ".join(_sentence(error, whole, spell) for error in errors)


def _sentence(error: Mapping[str, Any], whole: str, spell: Callable[[str], str]) -> str:
    place = ".".join(spell(str(part)[:SHOWN]) for part in error["loc"]) or whole
    value = error.get("input")
    given = f" (given: {value[:SHOWN]!r})" if isinstance(value, str) else ""
    message = error["msg"].removeprefix("Value error, ")  # of our own validators
    return f"{place}: {message}{given}" if place else f"{message}{given}"
