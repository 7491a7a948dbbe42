"""Watershed: from raw business sources to versioned training sets and the models that live on them."""
