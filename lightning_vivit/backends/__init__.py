"""Ways to get Jacobian factors of a model."""
