"""Command line of :mod:`sb3_happo_zoo.ablations`."""

from sb3_happo_zoo.ablations import main

if __name__ == "__main__":
    main()
