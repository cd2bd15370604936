"""Publishing a run on a model hub, with a card made from its own records."""
