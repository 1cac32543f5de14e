"""What a save is made of and no user imports: from a plan's items to bytes in shard files."""
