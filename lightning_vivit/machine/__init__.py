"""The machine: memory, threads, and what its numbers can hold."""
