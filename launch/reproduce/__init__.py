"""Trains the runs of a table of results, or goes on with them, and prints it."""
