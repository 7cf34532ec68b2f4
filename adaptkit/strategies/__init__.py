"""The built-in strategies, registered through the same hook as anyone's."""
