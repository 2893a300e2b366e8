"""Command line of :mod:`sb3_happo_zoo.proposition1`."""

from sb3_happo_zoo.proposition1 import main

if __name__ == "__main__":
    main()
