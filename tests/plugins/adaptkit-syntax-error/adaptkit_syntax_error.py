"""Broken on purpose: not Python."""

def adaptkit_register_strategies(register:
