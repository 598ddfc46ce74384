"""Eigenvalues and eigenvectors of symmetric matrices, dense or given by their products."""
