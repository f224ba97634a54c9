"""Many runs on one model: sweeps over targets, sensitivity of single groups."""
