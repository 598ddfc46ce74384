"""The machine: its memory, and what its numbers can hold."""
