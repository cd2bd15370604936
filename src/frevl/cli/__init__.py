"""The command line: entry point, shared flags, tables for people. The commands are in `frevl.cli.commands`."""
