"""Data: loading, splitting over clients, choosing cohorts, augmenting."""
