"""Methods that match the gradients of networks on real and synthetic images."""
