"""Read published data sets from their official files into pairs."""
