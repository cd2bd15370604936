"""Published data sets, read from their official files into pairs."""
