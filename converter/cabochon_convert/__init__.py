"""Converts Gemma 4 E2B and E4B checkpoints into packages for cabochon."""
