"""Command line of :mod:`sb3_happo_zoo.speed`."""

from sb3_happo_zoo.speed import main

if __name__ == "__main__":
    main()
