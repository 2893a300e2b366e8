"""Command line of :mod:`sb3_happo_zoo.benchmark`."""

import sys

from sb3_happo_zoo.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
