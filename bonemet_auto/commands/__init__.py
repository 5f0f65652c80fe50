"""One module per console script. Heavy imports happen after the arguments are parsed."""
