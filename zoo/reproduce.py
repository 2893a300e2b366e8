"""Command line of :mod:`sb3_happo_zoo.reproduce`."""

import sys

from sb3_happo_zoo.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
