"""Pruning: masks are made, enforced, counted, sent, and turned into smaller models."""
