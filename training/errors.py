"""Errors that the user of the command line can correct.

TrainingError     one line for the person at the terminal: what was wrong, what is allowed
printable         a name in such a line
"""


class TrainingError(Exception):
    """The command stops with this line and a non-zero exit code; finished work is kept."""


def printable(text: str) -> str:
    """The text on one line: names of files may have any characters."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
