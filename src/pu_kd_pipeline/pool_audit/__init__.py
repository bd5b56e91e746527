"""The audit of a pool: a person's yes and no for images of it, and what follows from them.

`drawing` chooses the images, `answers` reads what the page saved, `estimation` makes the class
prior and the precision of a ranking and a selection from both.
"""
