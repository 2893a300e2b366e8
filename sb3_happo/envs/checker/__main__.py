"""Entry point of ``python -m sb3_happo.envs.checker``."""

import sys

from sb3_happo.envs.checker.command import main

if __name__ == "__main__":
    sys.exit(main())
