"""How good predictions are: pairing of lesions, figures, and their confidence intervals."""
