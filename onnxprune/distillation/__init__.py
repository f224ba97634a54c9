"""Training of weights against a teacher: fine-tuning and distillation, on unlabelled samples."""
