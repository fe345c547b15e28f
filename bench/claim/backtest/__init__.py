"""The back-test: the claim as it would have been answered on earlier days, scored against what came later."""
