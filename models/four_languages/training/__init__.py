"""Trains, finishes and measures the tiny Gemma 4 model; see ../README.md for the commands."""
