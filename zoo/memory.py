"""Command line of :mod:`sb3_happo_zoo.memory_benchmark`."""

from sb3_happo_zoo.memory_benchmark import main

if __name__ == "__main__":
    main()
