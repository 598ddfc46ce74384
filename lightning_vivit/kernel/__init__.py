"""Kernels of parameter groups from Jacobian factors, within a memory budget."""
