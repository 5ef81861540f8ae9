"""Names that look like others: misspelt variables of settings.

misspelt("API_KEY", ["API_KEYS", "PORT"])       # "API_KEYS"
edit_distance("KEY", "KEYS")                    # 1
"""

import re
from collections.abc import Sequence

# Programs prefix their variables with their names. HOST and PORT are left out below: Docker and Kubernetes set
# APP_PORT and the like for a service that is called app.
PREFIXES = ("APP_", "CIFAR_", "CIFAR10_", "CLASSIFIER_", "CIFAR10_CLASSIFIER_", "SERVICE_")
ORDINARY = ("ROOTPATH",)  # Gentoo sets it
# Letters. Many other words differ from a name shorter than SHORT by one letter, and any from one of less than LEAST.
LEAST, SHORT, LONG = 4, 6, 10


def misspelt(name: str, known: Sequence[str]) -> str | None:
    """The setting that the name of a variable was probably meant for; None for a setting's own name and for others.

    A misspelling has one letter added, left out, replaced or exchanged with the next one (two such edits in names of
    LONG letters and more). It may have any separators, one of PREFIXES before it, and _FILE after it, as variables
    have that name a mounted secret.
    Of names shorter than SHORT, only the plural, the singular and exchanged letters count; of names shorter than LEAST,
    nothing does.
    """
    given = name.upper()
    if given in known or given in ORDINARY:
        return None
    bare = given.removesuffix("_FILE")
    theirs = _letters(given)
    for setting in known:
        if setting not in ("HOST", "PORT") and bare in (setting, *(prefix + setting for prefix in PREFIXES)):
            return setting
        ours = _letters(setting)
        most = 2 if len(ours) >= LONG else 1
        edits = edit_distance(ours, theirs) if may_be_near(ours, theirs, most) else most + 1
        if len(ours) < LEAST:
            near = False
        elif len(ours) < SHORT:
            near = edits == 1 and (sorted(ours) == sorted(theirs) or ours.removesuffix("S") == theirs.removesuffix("S"))
        else:
            near = edits <= most or theirs == ours.removesuffix("IES") + "Y"
        if near:
            return setting
    return None


def may_be_near(one: str, other: str, edits: int) -> bool:
    """Quickly, whether so few edits could do: each changes the length by at most one, and one letter on either side."""
    return abs(len(one) - len(other)) <= edits and len(set(one) ^ set(other)) <= 2 * edits


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions, substitutions and exchanges of neighbours (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, opposite in enumerate(other, 1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != opposite))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == opposite:
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]


def _letters(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name)
