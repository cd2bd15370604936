"""Several processes that train one network together: who they are, what they tell each other, how they are started."""
