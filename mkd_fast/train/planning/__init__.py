"""``mkd-fast plan``: the memory that a recipe's stages take, before any of it is taken."""
