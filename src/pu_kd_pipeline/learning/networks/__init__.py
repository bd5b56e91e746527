"""Networks: ours, torchvision's, and a user's own factory; and what limits their use."""
