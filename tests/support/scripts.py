"""Scripts that run on several ranks, as tests start them."""

from __future__ import annotations

from support.torch_versions import LACKING

DESTROY = "dist.destroy_process_group()"
EXIT = """
if __name__ == "__main__":
    import atexit, os, sys
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
"""


def that_ends(script: str) -> str:
    """The script, which ends its process by itself where it has come to its end.

    gloo's threads hold the tensors of the last collectives a little longer than those who wait for them. A thread that
    frees one wants the interpreter's lock. Where the interpreter ends at that moment the process aborts ("terminate
    called without an active exception"); under torch 2.6 ``destroy_process_group`` may wait for that thread with the
    lock held, for ever.
    """
    return (script.replace(DESTROY, "pass") if "no_dist" in LACKING else script) + EXIT
