"""What is found on every line, stored in arrays and turned into JSON objects on access."""
