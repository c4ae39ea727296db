"""A run: policies played one after another, recorded and summed up."""
