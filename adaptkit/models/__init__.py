"""Base models: loading, precision, heads, attention and PEFT layers."""
