"""The methods: each says how one outer step changes a SyntheticSet."""

from ddfast.methods.mtt import MTT, MTTSettings

METHODS = {"mtt": MTT}

__all__ = ["METHODS", "MTT", "MTTSettings"]
