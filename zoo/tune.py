"""Command line of :mod:`sb3_happo_zoo.tune`."""

from sb3_happo_zoo.tune import main

if __name__ == "__main__":
    main()
