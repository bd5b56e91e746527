"""Networks by name, the layers and sizes they work with, and checks that they can be used."""
