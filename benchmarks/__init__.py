"""Speed, memory and agreement, each one command that prints a table."""
