"""Training on image stores: teachers, PU classifiers, students."""
