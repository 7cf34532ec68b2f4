"""What text classification predicts of a text: one label, several labels, or a number."""
