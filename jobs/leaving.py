"""How a process that has done its work ends."""

import atexit
import os
import sys
from typing import NoReturn


def leave(exit_code: int) -> NoReturn:
    """End this process after its atexit functions, but without tearing the interpreter down where native threads run.

    Those of pyarrow, torch and ray now and then abort a process that is torn down in the usual way, after all its work
    is done ("terminate called without an active exception").
    """
    if not {"pyarrow", "torch", "ray"} & sys.modules.keys():
        sys.exit(exit_code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
