"""Debias a finished run: remove the prior of one side, or neutralise text differences that should not matter."""
