"""A network's own graph: what each layer needs of its input, followed from the network's `forward`."""
