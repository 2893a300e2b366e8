"""Command line of :mod:`sb3_happo_zoo.enjoy`."""

from sb3_happo_zoo.enjoy import main

if __name__ == "__main__":
    main()
