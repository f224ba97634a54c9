"""Units without which the model computes the same: dead, constant, duplicate, proportional."""
