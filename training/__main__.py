"""`python -m training`, which says that it begins: the imports of the command line take seconds."""

import os
import sys

LONG = ("all", "fit")


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in LONG and os.environ.get("RANK", "0") == "0":
        print("loading PyTorch", file=sys.stderr, flush=True)
    try:
        from training.command_line import main as command_line
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
