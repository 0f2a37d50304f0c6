"""Bundles for others: packed, listed, published and fetched."""
