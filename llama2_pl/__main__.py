"""The process `llama2-pl`, also `python -m llama2_pl`: errors become one clear line and an exit status."""

from __future__ import annotations

import sys

from llama2_pl.cli import main as run

ERROR, INTERRUPTED = 1, 130


def is_advice(error: Exception) -> bool:
    """Whether the message says what to do, so that nobody needs the traceback."""
    if isinstance(error, ImportError):
        return "llama2-pl[" in str(error)  # it names the extra to install
    # These are known by their names: Lightning, and our callbacks, are imported only where a Trainer runs
    named = ("MisconfigurationException", "RunStopped")
    return isinstance(error, (ValueError, OSError)) or type(error).__name__ in named


def main() -> int:
    """Run the command line; 0 done, 1 failed, 130 interrupted (by SystemExit: 2 wrong usage, 143 terminated)."""
    try:
        run()
    except KeyboardInterrupt:
        print("llama2-pl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from llama2_pl.commands.parsing import debugging

        if debugging() or not is_advice(error):
            raise
        print(f"llama2-pl: error: {error}\n(LLAMA2_PL_DEBUG=1 shows where it comes from)", file=sys.stderr)
        return ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
