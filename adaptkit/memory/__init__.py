"""How much memory a run will need, from configs and rows alone, and what makes it fit."""
