"""The command line, and notebooks executed in order: what is missing is planned, made, published."""
