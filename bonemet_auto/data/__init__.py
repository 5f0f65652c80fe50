"""From stored cases to training batches. Sample k is a pure function of (seed, k)."""
