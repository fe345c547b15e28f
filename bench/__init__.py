"""crossover: what a token costs to train and to serve, measured, priced and held against the claim."""
