"""Command line of :mod:`sb3_happo_zoo.train`."""

from sb3_happo_zoo.train import main

if __name__ == "__main__":
    main()
