"""Unrolled training and its exact meta-gradient: students, adjoints, distances, and the plan of their memory."""
