"""Language models: where their labels are, and logits and losses over a vocabulary."""
