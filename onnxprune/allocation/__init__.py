"""How far to go along each removal order so that the targets are met."""
