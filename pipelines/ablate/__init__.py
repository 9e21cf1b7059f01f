"""The ladder: methods, rewards and objectives held against each other, a cell at a time. Outside the default graph."""
