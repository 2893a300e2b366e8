"""Command line of :mod:`sb3_happo_zoo.export`."""

from sb3_happo_zoo.export import main

if __name__ == "__main__":
    main()
