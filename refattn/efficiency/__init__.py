"""Efficiency: quantise, train in levels, balance a cluster."""
