"""Equilibria that Nash-Q reaches in a grid game, by selection rule; see ``docs/tabular.md``."""

from sb3_happo_zoo.selection_rules import main

if __name__ == "__main__":
    main()
