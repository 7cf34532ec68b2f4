"""What token classification is made of: tagged words, their sub-tokens, and the entities that tags mark."""
