"""What a network does not know because it has seen too little of it. Pure torch."""
