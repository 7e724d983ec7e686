"""Stages of a setup wired together, notebooks executed in order, and the command line."""
