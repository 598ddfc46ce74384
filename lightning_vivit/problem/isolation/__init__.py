"""Evaluate a module without leaving a trace in the run."""
