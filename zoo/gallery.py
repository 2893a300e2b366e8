"""Command line of :mod:`sb3_happo_zoo.gallery`."""

from sb3_happo_zoo.gallery import main

if __name__ == "__main__":
    main()
