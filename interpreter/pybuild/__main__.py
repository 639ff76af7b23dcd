"""``python -m pybuild``."""

import sys

from pybuild.cli import main

if __name__ == "__main__":
    sys.exit(main())
