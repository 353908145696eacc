"""Methods that descend on the loss of real data, through a whole training or its last steps."""
