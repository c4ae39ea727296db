"""The sample of test images that eex ships."""
