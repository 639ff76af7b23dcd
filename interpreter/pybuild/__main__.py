"""``python -m pybuild``, and what the command ``pybuild`` starts."""

import gc
import sys

_OBJECTS = 1_000_000


def main() -> int:
    """Run the command line and return its exit code."""
    # A build makes hundreds of thousands of objects and next to no cycles of them: to look for
    # garbage as often as Python does by itself would take a fifth of the time.
    gc.set_threshold(_OBJECTS)
    from pybuild.cli import main as run  # noqa: PLC0415 - what it loads are objects, too

    try:
        return run()
    finally:
        # nor at the end: what is to be closed is closed by now
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
