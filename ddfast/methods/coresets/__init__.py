"""Methods that select real images, and learn nothing."""
