"""Interventions: act on a running transformer."""
