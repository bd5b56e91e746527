"""What a result was made by: the code that was reached, and the versions of libraries."""
