"""Masks: how they are made, trained under, sent and made smaller models of."""
