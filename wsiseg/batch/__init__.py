"""Many cases: found, worked on by several processes or machines, and summed up."""
