"""A finished run -> one without the prior of one side, or with texts that do not differ in what should not matter."""
