"""Teacher features of whole image stores, and PU scores computed from them."""
