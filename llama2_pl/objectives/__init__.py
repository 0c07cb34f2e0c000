"""Pure functions on tensors: every loss and reward of the recipe, each with its equation."""
