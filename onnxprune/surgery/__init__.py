"""From a plan to the smaller model: compensate, slice, patch what speaks of sizes."""
