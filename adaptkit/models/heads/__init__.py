"""Heads for labels on a base: new ones, transformers' own, those that a run before has trained."""
