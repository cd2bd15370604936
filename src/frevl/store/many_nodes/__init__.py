"""Work that is shared out among the nodes of a Ray cluster: the connection, the workers, and extraction with them."""
