"""``python -m pybuild``, and what the command ``pybuild`` starts."""

import gc
import sys

_OBJECTS = 100_000


def main() -> int:
    """Run the command line and return its exit code."""
    # A build makes hundreds of thousands of objects, and next to no garbage in cycles: looking
    # for it as often as Python does by default takes a fifth of the time.
    gc.set_threshold(_OBJECTS)
    from pybuild.cli import main as run  # noqa: PLC0415 - what is loaded are objects, too

    return run()


if __name__ == "__main__":
    sys.exit(main())
