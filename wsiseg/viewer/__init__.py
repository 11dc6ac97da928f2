"""The viewer: results in the browser, at every zoom, with the mask coloured there."""
