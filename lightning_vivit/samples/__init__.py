"""What a batch is: its samples, where they are in a tensor, how it is cut and joined."""
