"""The commands, a file a theme. Each command parses, calls one function and prints."""
