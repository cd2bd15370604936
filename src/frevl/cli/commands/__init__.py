"""The commands, one file per theme. Each command parses, calls one function and prints."""
