"""How fast the attacks are: the published way of working and ours, on the same targets with the same budget."""
