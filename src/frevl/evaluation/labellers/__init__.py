"""How far several people agree about the same pictures."""
