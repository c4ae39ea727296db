"""The weights and the card of the model that eex ships."""
