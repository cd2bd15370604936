"""What is wrong with a text or a picture by itself, whatever it is paired with."""
