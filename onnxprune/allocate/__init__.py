"""How many units each group gives up, and which: the plan."""
