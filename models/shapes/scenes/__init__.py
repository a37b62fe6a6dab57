"""What the included model knows: scenes, the English that names them, and the clips that show them."""
