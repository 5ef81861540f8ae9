"""What the environment says.

settings        the variables, their bounds and defaults
spelling        names that look like a variable's
command_help    what `serve --help` says of them
"""

from .settings import DEFAULT_MODEL, ENV_FILE, FILES_SUFFIX, MAX_WORKERS, LogFormat, Settings, SettingsError

__all__ = ["DEFAULT_MODEL", "ENV_FILE", "FILES_SUFFIX", "MAX_WORKERS", "LogFormat", "Settings", "SettingsError"]
