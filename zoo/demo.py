"""Command line of :mod:`sb3_happo_zoo.demo`."""

from sb3_happo_zoo.demo import main

if __name__ == "__main__":
    main()
