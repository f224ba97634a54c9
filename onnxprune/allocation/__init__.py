"""How many units each group gives up so that the targets are met."""
