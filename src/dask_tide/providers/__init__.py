"""Providers: what starts and stops units, one module or folder each."""
