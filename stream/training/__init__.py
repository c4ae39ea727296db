"""Training a model from images: options, data, the network to start from, the steps, and measuring what came out."""
