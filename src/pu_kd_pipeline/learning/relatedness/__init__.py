"""How related an image is to a network's training images, without access to any of them.

S3, a reconstruction.
"""
