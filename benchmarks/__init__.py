"""Commands that measure speed and accuracy: each prints a table. The tests do not run them."""
