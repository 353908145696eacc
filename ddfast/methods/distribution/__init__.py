"""Methods that match the distributions of real and synthetic images in what networks see."""
