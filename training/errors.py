"""Errors that the user of the command line can correct.

TrainingError     one line for the person at the terminal: what was wrong, what is allowed
"""


class TrainingError(Exception):
    """The command stops with this line and a non-zero exit code; finished work is kept."""
