"""The built-in tasks, registered through the same hook as anyone's."""
