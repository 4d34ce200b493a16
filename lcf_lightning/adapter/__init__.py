"""What is trained: pooler, gates and fuser of each layer, and the folder that holds them."""
