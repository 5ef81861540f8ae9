"""How a command line ends: with one line for an error, and with an exit code.

    run_command_line(cli, "python -m training")

0 it has done it, 1 an error, 2 a wrong option, 130 interrupted; and those of `Stopped`.
"""

import sys

import typer
from typer.exceptions import TyperException

from training.errors import TrainingError, printable
from training.fit.distributed import LeaderFailed, speaker
from training.fit.stop import Stopped


def run_command_line(cli: typer.Typer, program: str) -> None:
    """Run a command line called `program` and exit with its code; an error that the user can correct is one line."""
    try:
        code = cli(prog_name=program, standalone_mode=False)
    except LeaderFailed:
        sys.exit(1)
    except Stopped as stop:
        _stop(str(stop), stop.exit_code)
    except TrainingError as error:
        _stop(str(error), 1)
    except TyperException as error:
        message = " ".join(error.format_message().split())
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else program
        _stop(f"{message} ({command} --help shows what is allowed)", error.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""  # a failed write does not tell it
        _stop(f"{error.strerror}{where}: free some space, or name another folder", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        _stop("interrupted: the same command goes on from what is saved, if anything is", 130)
    sys.exit(code)


def _stop(message: str, code: int) -> None:
    print(f"error: {speaker()}{printable(message)}", file=sys.stderr)
    sys.exit(code)
