"""One photograph or a million with the same command: find them, upscale what is not done yet, report each."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from seesr.batch.interrupt import Interrupts
from seesr.batch.job import StoppedError
from seesr.batch.options import parse
from seesr.batch.progress import BarHandler, say

FAILED, WRONG, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Nothing is raised for what a user can mend."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    from seesr.batch.run import run  # imported here: --help needs no torch, which takes seconds

    logging.basicConfig(handlers=[BarHandler()], level=logging.WARNING, force=True)
    warnings.simplefilter("ignore")  # once for all threads; libraries' warnings are no messages for users
    try:
        with Interrupts() as interrupts:
            return run(options, interrupts)
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return INTERRUPTED
    except StoppedError as error:
        say(str(error))
        return FAILED
    except ValueError as error:
        say(str(error))
        return WRONG
    except BrokenPipeError:  # who read the output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
