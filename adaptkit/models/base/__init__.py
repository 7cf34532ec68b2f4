"""A base: from its name to a module with its weights."""
