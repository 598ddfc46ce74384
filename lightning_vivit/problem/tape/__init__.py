"""One forward pass as it was recorded: operations, loss calls, graph."""
