"""The process `llama2-pl`, also `python -m llama2_pl`: errors become one clear line and an exit status."""

from __future__ import annotations

import sys

from llama2_pl.cli import main as run

ERROR, INTERRUPTED = 1, 130


def main() -> int:
    """Run the command line; 0 done, 1 failed, 130 interrupted (by SystemExit: 2 wrong usage, 143 terminated)."""
    try:
        run()
    except KeyboardInterrupt:
        print("llama2-pl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, FileNotFoundError, ImportError) as error:
        from llama2_pl.commands.parsing import debugging

        # an ImportError is advice only where it names the extra to install
        if debugging() or (isinstance(error, ImportError) and "llama2-pl[" not in str(error)):
            raise
        print(f"llama2-pl: error: {error}\n(LLAMA2_PL_DEBUG=1 shows where it comes from)", file=sys.stderr)
        return ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
