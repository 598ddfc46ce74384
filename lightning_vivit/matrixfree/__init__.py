"""Curvature without a Gram matrix: products, leading eigenpairs, directions, trace."""
