"""What can go wrong in training for a reason that its user can mend.

TrainingError     one line for the person at the terminal: what was wrong, what is allowed
"""


class TrainingError(Exception):
    """The command stops with this line and a non-zero exit code; nothing that was finished is lost."""
