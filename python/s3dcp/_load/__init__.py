"""What a load is made of: the index, a rank's items, the downloads, and what only torch can do."""
