"""What stages, links and encodings take; where to cut the network and how to send frames."""
