"""What a network is trained for: from the rows of a batch to its loss."""
