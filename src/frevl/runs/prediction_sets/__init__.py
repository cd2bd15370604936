"""Sets of classes that hold the right one as often as was asked for."""
