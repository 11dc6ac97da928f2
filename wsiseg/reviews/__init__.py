"""Reviews: what pathologists say of masks and draw over them, and scores against that."""
